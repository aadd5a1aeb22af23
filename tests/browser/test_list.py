"""The list beside the conversation, while it is read again."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from browser.conftest import ChatServer, Somebody
from browser.page import ChatPage, Held

SF = "Hello, I live in SF!"
REX = "My dog is Rex."

FOCUS = "window.dispatchEvent(new Event('focus'))"


@pytest.fixture
def talks(somebody: Somebody, server: ChatServer) -> list[str]:
    """The ids of 70 conversations, oldest first: Talk 0 to Talk 69."""
    return [server.create(somebody.name, f"Talk {number}") for number in range(70)]


def names(*numbers: int) -> list[str]:
    return [f"Talk {number}" for number in numbers]


def test_a_click_on_coming_back(chat: ChatPage) -> None:
    """The list that answers between the press of the button and its release takes nothing away."""
    chat.say(REX)
    chat.button("New chat").click()
    chat.say(SF)
    chat.button("New chat").click()
    held = Held(chat.page, "**/conversations?*")
    chat.page.evaluate(FOCUS)
    held.wait()
    chat.titles.filter(has_text=SF).hover()
    chat.page.mouse.down()
    with chat.page.expect_response("**/conversations?*"):
        held.let_go()
    chat.page.wait_for_timeout(200)  # for it to be drawn
    chat.page.mouse.up()
    expect(chat.questions).to_have_text(SF)


def test_the_focus_stays_on_its_row(chat: ChatPage, server: ChatServer, somebody: Somebody) -> None:
    """A row that comes before it moves it, and nothing more."""
    chat.say(SF)
    row = chat.titles.filter(has_text=SF)
    row.focus()
    server.create(somebody.name, REX)
    chat.page.evaluate(FOCUS)
    chat.lists(REX, SF)
    expect(row).to_be_focused()


def test_more(somebody: Somebody, server: ChatServer, talks: list[str]) -> None:
    """Two clicks bring one page, and what it brought stays when the list is read again."""
    chat = somebody.page()
    expect(chat.titles).to_have_count(30)
    held = Held(chat.page, "**/conversations?*")
    chat.button("More").click()
    held.wait()
    expect(chat.button("More")).to_be_disabled()
    chat.button("More").evaluate("element => element.click()")
    held.let_go()
    chat.lists(*names(*range(69, 9, -1)))
    server.create(somebody.name, "Talk 70")
    chat.page.evaluate(FOCUS)
    chat.lists(*names(*range(70, 10, -1)))
    chat.button("More").click()
    chat.lists(*names(*range(70, -1, -1)))
    expect(chat.button("More")).to_be_hidden()
    chat.page.get_by_role("searchbox").fill("nobody said this")
    chat.lists()
    chat.page.get_by_role("searchbox").fill("")
    expect(chat.titles).to_have_count(30)


def test_the_name_of_what_is_not_listed(
    somebody: Somebody, server: ChatServer, talks: list[str]
) -> None:
    """An old one that is opened by its address; one that is not what is searched for."""
    chat = somebody.page(address=f"/#{talks[0]}")
    heading = chat.page.get_by_role("heading", level=1)
    expect(chat.titles).to_have_count(30)
    expect(heading).to_have_text("Talk 0")
    assert chat.page.title() == "Talk 0"
    chat.titles.first.click()
    expect(heading).to_have_text("Talk 69")
    chat.page.get_by_role("searchbox").fill("nobody said this")
    chat.lists()
    expect(heading).to_have_text("Talk 69")
    chat.page.go_back()
    expect(heading).to_have_text("Talk 0")
    chat.button("New chat").click()
    expect(heading).to_have_text("New chat")

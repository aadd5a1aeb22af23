"""The chat page: what somebody does on it, in a real browser."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from browser.conftest import ChatServer, Somebody
from browser.page import ChatPage

Picture = Callable[[ChatPage, str], None]

SF = ("Hello, I live in SF!", "Hello! I will remember: you live in SF.")
ASKED = ("Where do I live?", "You said that you live in SF.")


def test_the_whole_story(chat: ChatPage, somebody: Somebody, picture: Picture) -> None:
    """Ask, see a tool work, go on after a reload, and find it in the list."""
    expect(chat.log).to_contain_text("Say something")
    chat.say(SF[0])
    chat.shows(*SF)
    chat.lists(SF[0])
    chat.say("What is the weather in Rome?")
    called = chat.log.get_by_role("group").filter(has_text="get_weather")
    called.locator("summary").click()
    expect(called).to_contain_text('"city": "Rome"')
    expect(called).to_contain_text("It is sunny in Rome.")
    chat.say(ASKED[0])
    expect(chat.log.get_by_text("204 tokens")).to_be_visible()
    expect(chat.page.get_by_text("408 tokens")).to_be_visible()
    everything = (*SF, "What is the weather in Rome?", "It is sunny in Rome.", *ASKED)
    chat.shows(*everything)
    chat.page.reload()
    chat.shows(*everything)
    expect(chat.page.get_by_role("heading", level=1)).to_have_text(SF[0])
    picture(chat, "light")
    other = somebody.page(address=f"/#{chat.id}")
    other.shows(*everything)


def test_the_list(chat: ChatPage) -> None:
    """Renamed, deleted, opened; the latest first."""
    chat.say(SF[0])
    first = chat.id
    chat.button("New chat").click()
    expect(chat.log).to_contain_text("Say something")
    chat.say("My dog is Rex.")
    chat.lists("My dog is Rex.", SF[0])
    expect(chat.side.locator("[aria-current=page]")).to_have_text("My dog is Rex.")

    chat.page.get_by_role("searchbox").fill("you live in sf")
    chat.lists(SF[0])
    chat.page.get_by_role("searchbox").fill("nobody said this")
    chat.lists()
    expect(chat.side).to_contain_text("Nothing here.")
    chat.page.get_by_role("searchbox").fill("")
    chat.lists("My dog is Rex.", SF[0])

    chat.button(f"Rename {SF[0]}").click()
    chat.page.get_by_role("textbox", name="Title").fill("Where I live")
    chat.page.get_by_role("dialog").get_by_role("button", name="Rename").click()
    chat.lists("My dog is Rex.", "Where I live")

    chat.button("Delete My dog is Rex.").click()
    chat.page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    chat.button("Delete My dog is Rex.").click()
    chat.page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    chat.lists("Where I live")
    expect(chat.log).to_contain_text("Say something")

    chat.titles.first.click()
    chat.shows(*SF)
    assert chat.id == first
    chat.page.go_back()
    expect(chat.log).to_contain_text("Say something")


def test_an_edit_and_its_versions(chat: ChatPage, picture: Picture) -> None:
    """What was there before is leafed back to, with all that followed it."""
    chat.say(SF[0])
    chat.say(ASKED[0])
    chat.button("Edit").first.click()
    field = chat.page.get_by_role("textbox", name="Edit the message")
    expect(field).to_have_value(SF[0])
    field.fill("Hello, I live in Oslo!")
    field.press("Enter")
    chat.wait()
    oslo = ("Hello, I live in Oslo!", "Hello! I will remember: you live in Oslo.")
    chat.shows(*oslo)
    expect(chat.log.get_by_text("2 / 2")).to_be_visible()
    chat.say(ASKED[0])
    chat.button("Version before").click()
    chat.shows(*SF, *ASKED)
    expect(chat.log.get_by_text("1 / 2")).to_be_visible()
    picture(chat, "versions")
    chat.page.reload()
    chat.button("Version after").click()
    chat.shows(*oslo, ASKED[0], "You said that you live in Oslo.")


def test_regenerate(chat: ChatPage) -> None:
    """Each answer is kept; the order stays whichever is shown."""
    chat.say(SF[0])
    for count in (2, 3):
        chat.button("Regenerate").click()
        chat.wait()
        chat.shows(*SF)
        expect(chat.log.get_by_text(f"{count} / {count}")).to_be_visible()
    chat.button("Version before").click()
    expect(chat.log.get_by_text("2 / 3")).to_be_visible()
    chat.button("Version before").click()
    expect(chat.log.get_by_text("1 / 3")).to_be_visible()
    expect(chat.button("Version before")).to_be_disabled()
    chat.button("Version after").click()
    expect(chat.log.get_by_text("2 / 3")).to_be_visible()


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        ("Approve", "There is a table for you in two."),
        ("Decline", "Tool execution was not approved."),
    ],
)
def test_a_tool_waits(chat: ChatPage, picture: Picture, decision: str, said: str) -> None:
    """Also through a reload; the answer counts once."""
    chat.say("Book a table for two")
    card = chat.log.get_by_role("group", name="Approval of book_table")
    expect(card).to_contain_text('"place": "two"')
    picture(chat, "approval")
    chat.page.reload()
    card.get_by_role("button", name=decision).click()
    expect(card).to_have_count(0)
    chat.wait()
    chat.shows("Book a table for two", said)
    chat.page.reload()
    chat.shows("Book a table for two", said)
    expect(card).to_have_count(0)


def test_two_cards_for_one_call(chat: ChatPage, somebody: Somebody) -> None:
    """Who comes second is told, and sees what became of it."""
    chat.say("Book a table for two")
    other = somebody.page(chat.page.context, f"/#{chat.id}")
    expect(other.button("Approve")).to_be_visible()
    chat.button("Approve").click()
    chat.wait()
    somebody.expects = "409"
    other.button("Decline").click()
    expect(other.alert).to_contain_text("waits for this answer")
    other.shows("Book a table for two", "There is a table for you in two.")
    expect(other.button("Decline")).to_have_count(0)


def test_a_card_of_elsewhere(chat: ChatPage, somebody: Somebody) -> None:
    """Another browser was not told what waits, and says so; a message goes on."""
    chat.say("Book a table for two")
    other = somebody.page(address=f"/#{chat.id}")
    expect(other.log).to_contain_text("asked for elsewhere")
    other.say(SF[0])
    other.shows("Book a table for two", *SF)


def test_stop(chat: ChatPage, server: ChatServer) -> None:
    """The question stays, and can be asked again."""
    server.let_go(go=False)
    chat.begin(f"Wait: wait for me. {SF[0]}")
    expect(chat.answers).to_have_text("Hello! ")
    expect(chat.button("Send")).to_be_hidden()
    chat.button("Stop").click()
    chat.wait()
    chat.shows(f"Wait: wait for me. {SF[0]}")
    server.let_go(go=True)
    chat.button("Regenerate").click()
    chat.wait()
    chat.shows(f"Wait: wait for me. {SF[0]}", SF[1])


def test_an_edit_that_is_stopped(chat: ChatPage, server: ChatServer) -> None:
    """Nothing was replaced, and the words are not lost."""
    chat.say(SF[0])
    server.let_go(go=False)
    chat.button("Edit").click()
    field = chat.page.get_by_role("textbox", name="Edit the message")
    field.fill("wait for me, I live in Oslo!")
    field.press("Enter")
    expect(chat.answers).to_have_text("Hello! ")
    chat.page.keyboard.press("Escape")
    chat.wait()
    chat.shows(*SF)
    expect(chat.message).to_have_value("wait for me, I live in Oslo!")


def test_somewhere_else_meanwhile(chat: ChatPage, server: ChatServer) -> None:
    """An answer goes on while another conversation is shown, and is there on return."""
    chat.say(SF[0])
    first = chat.page.url
    server.let_go(go=False)
    chat.begin("wait for me, my dog is Rex.")
    expect(chat.answers).to_have_count(2)
    chat.button("New chat").click()
    expect(chat.log).to_contain_text("Say something")
    chat.say("My cat is Tom.")
    chat.shows("My cat is Tom.", "Hello! I will remember: your cat is Tom.")
    chat.titles.filter(has_text=SF[0]).click()
    expect(chat.button("Stop")).to_be_visible()
    expect(chat.answers.last).to_have_text("Hello! ")
    server.let_go(go=True)
    chat.wait()
    chat.shows(*SF, "wait for me, my dog is Rex.", "Hello! I will remember: your dog is Rex.")
    assert chat.page.url == first


def test_a_reload_in_mid_stream(chat: ChatPage, server: ChatServer) -> None:
    """What is stored is shown, and it goes on from there."""
    server.let_go(go=False)
    chat.begin(f"wait for me. {SF[0]}")
    expect(chat.answers).to_have_text("Hello! ")
    chat.page.reload()
    chat.shows(f"wait for me. {SF[0]}")
    server.let_go(go=True)
    chat.say(ASKED[0])
    chat.shows(f"wait for me. {SF[0]}", *ASKED)


def test_a_server_that_ends(chat: ChatPage, server: ChatServer, somebody: Somebody) -> None:
    """In mid-answer; the conversation goes on with the one that is started then."""
    chat.say(SF[0])
    server.let_go(go=False)
    chat.begin("wait for me, my dog is Rex.")
    expect(chat.answers).to_have_count(2)
    somebody.expects = "ERR_"
    server.kill()
    expect(chat.alert).to_contain_text("broke off")
    chat.begin("Is anybody there?")
    expect(chat.alert).to_be_visible()
    server.let_go(go=True)
    server.start()
    chat.say(ASKED[0])
    expect(chat.alert).to_be_hidden()
    chat.shows(*SF, "wait for me, my dog is Rex.", *ASKED)


def test_two_tabs(chat: ChatPage, somebody: Somebody) -> None:
    """Each goes on from what the other has said."""
    chat.say(SF[0])
    other = somebody.page(chat.page.context, f"/#{chat.id}")
    other.shows(*SF)
    chat.say(ASKED[0])
    other.page.evaluate("window.dispatchEvent(new Event('focus'))")
    other.shows(*SF, *ASKED)
    other.say("My dog is Rex.")
    chat.say("What is my dog called?")
    chat.shows(
        *SF,
        *ASKED,
        "My dog is Rex.",
        "Hello! I will remember: your dog is Rex.",
        "What is my dog called?",
        "You said that your dog is Rex.",
    )


def test_another_user_sees_nothing_of_it(chat: ChatPage, somebody: Somebody) -> None:
    chat.say(SF[0])
    somebody.name = f"another-{somebody.name}"
    somebody.expects = "404"
    other = somebody.page(address=f"/#{chat.id}")
    expect(other.log).to_contain_text("Say something")
    other.lists()


def test_narrow_and_dark(somebody: Somebody, picture: Picture) -> None:
    """The list lies over the conversation and gives way to it; nothing is wider than the screen."""
    chat = somebody.page(
        somebody.window(viewport={"width": 360, "height": 640}, color_scheme="dark")
    )
    chat.say(SF[0])
    chat.say("My book is " + "longer" * 40)
    expect(chat.side).to_be_hidden()
    width = chat.page.evaluate("document.documentElement.scrollWidth")
    assert width == 360
    picture(chat, "narrow")
    chat.button("Show the list").click()
    expect(chat.button("New chat")).to_be_focused()
    chat.page.keyboard.press("Escape")
    expect(chat.side).to_be_hidden()
    chat.button("Show the list").click()
    chat.page.mouse.click(350, 600)
    expect(chat.side).to_be_hidden()
    chat.button("Show the list").click()
    chat.titles.first.click()
    expect(chat.side).to_be_hidden()


def test_light_and_dark(chat: ChatPage, picture: Picture) -> None:
    """As the system has it, or as it was chosen here."""
    ground = "getComputedStyle(document.body).backgroundColor"
    assert chat.page.evaluate(ground) == "rgb(255, 255, 255)"
    chat.button("Light or dark").click()
    assert chat.page.evaluate(ground) == "rgb(22, 24, 28)"
    chat.say("What is the weather in Rome?")
    picture(chat, "dark")
    chat.page.reload()
    assert chat.page.evaluate(ground) == "rgb(22, 24, 28)"

"""From one conversation to another: what is done belongs to the one that is shown."""

from __future__ import annotations

from playwright.sync_api import expect

from browser.conftest import ChatServer, Somebody
from browser.page import ChatPage, Held

SF = ("Hello, I live in SF!", "Hello! I will remember: you live in SF.")
REX = ("My dog is Rex.", "Hello! I will remember: your dog is Rex.")


def two_conversations(chat: ChatPage) -> tuple[str, str]:
    """The first, and the second, which is shown."""
    chat.say(SF[0])
    first = chat.id
    chat.button("New chat").click()
    chat.say(REX[0])
    return first, chat.id


def test_nothing_can_be_done_while_another_one_loads(chat: ChatPage) -> None:
    """What was shown before is gone, so that nothing of it is asked of the other one."""
    first, _ = two_conversations(chat)
    held = Held(chat.page, "**/items?*")
    chat.titles.filter(has_text=SF[0]).click()
    held.wait()
    chat.shows()
    for name in ("Regenerate", "Edit"):
        expect(chat.button(name)).to_have_count(0)
    expect(chat.button("Send")).to_be_disabled()
    chat.begin("Where do I live?")
    expect(chat.message).to_have_value("Where do I live?")
    held.let_go()
    chat.shows(*SF)
    chat.message.press("Enter")
    chat.wait()
    chat.shows(*SF, "Where do I live?", "You said that you live in SF.")
    assert chat.id == first


def test_one_that_cannot_be_loaded(chat: ChatPage, somebody: Somebody, server: ChatServer) -> None:
    """It says so, nothing is sent, and it can be tried again."""
    first, _ = two_conversations(chat)
    somebody.expects = "503"
    chat.page.route("**/items?*", lambda route: route.fulfill(status=503))
    chat.titles.filter(has_text=SF[0]).click()
    expect(chat.alert).to_contain_text("503")
    expect(chat.button("Regenerate")).to_have_count(0)
    expect(chat.button("Send")).to_be_disabled()
    chat.page.unroute("**/items?*")
    chat.button("Try again").click()
    chat.shows(*SF)
    expect(chat.alert).to_be_hidden()
    expect(chat.button("Send")).to_be_enabled()
    assert len(server.items(somebody.name, first)) == 2


def test_an_answer_to_an_older_click(chat: ChatPage, somebody: Somebody) -> None:
    """Neither what it brings nor its failure is shown over what was opened since."""
    two_conversations(chat)
    somebody.expects = "503"
    held = Held(chat.page, "**/items?*")
    chat.titles.filter(has_text=SF[0]).click()
    [late] = held.wait()
    held.open = True
    chat.titles.filter(has_text=REX[0]).click()
    chat.shows(*REX)
    with chat.page.expect_response("**/items?*"):
        late.fulfill(status=503)
    chat.page.wait_for_timeout(100)
    expect(chat.alert).to_be_hidden()
    chat.shows(*REX)


def test_the_first_failure_stays(somebody: Somebody) -> None:
    """The list that cannot be read when the page is opened; what is done next takes it away."""
    context = somebody.window()
    somebody.expects = "503"
    context.route("**/conversations?*", lambda route: route.fulfill(status=503))
    with context.expect_event("response", lambda response: response.status == 503):
        chat = somebody.page(context)
    expect(chat.log).to_contain_text("Say something")
    expect(chat.alert).to_contain_text("503")
    context.unroute("**/conversations?*")
    chat.say(SF[0])
    expect(chat.alert).to_be_hidden()


def test_a_failure_while_another_one_is_shown(chat: ChatPage, somebody: Somebody) -> None:
    """It is told, leads back, and what was not stored is there to be sent again."""
    chat.say(SF[0])
    first = chat.id
    held = Held(chat.page, "**/responses")
    somebody.expects = "503"
    chat.begin("Where do I live?")
    [asked] = held.wait()
    chat.button("New chat").click()
    asked.fulfill(status=503, json={"error": {"message": "It is down."}})
    expect(chat.alert).to_contain_text("In another conversation: It is down.")
    expect(chat.message).to_have_value("")
    chat.alert.get_by_role("button", name="Show it").click()
    chat.shows(*SF)
    assert chat.id == first
    expect(chat.alert).to_have_text("It is down.")
    expect(chat.message).to_have_value("Where do I live?")
    held.open = True
    chat.message.press("Enter")
    chat.shows(*SF, "Where do I live?", "You said that you live in SF.")
    chat.wait()
    chat.button("New chat").click()
    chat.titles.first.click()
    expect(chat.log).to_contain_text("Where do I live?")
    expect(chat.message).to_have_value("")


def test_words_that_were_said_before_are_not_lost_either(
    chat: ChatPage, somebody: Somebody
) -> None:
    """An earlier "yes" is not the one that was not stored; what is written meanwhile stays."""
    chat.say("yes")
    answer = chat.answers.inner_text()
    held = Held(chat.page, "**/responses")
    somebody.expects = "503"
    chat.begin("yes")
    [asked] = held.wait()
    chat.message.fill("and more")
    asked.fulfill(status=503)
    chat.shows("yes", answer)
    expect(chat.message).to_have_value("yes\nand more")

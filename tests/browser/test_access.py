"""The page without a mouse, and without eyes."""

from __future__ import annotations

from playwright.sync_api import expect

from browser.conftest import ChatServer, Somebody
from browser.page import ChatPage

NAMELESS = """() => [...document.querySelectorAll(
    "button, input, textarea, select, summary, a, dialog, [role=log], [role=group], aside"
)].filter((each) => each.checkVisibility()).filter((each) => {
    const labelled = (each.getAttribute("aria-labelledby") ?? "").split(" ")
        .map((id) => document.getElementById(id)?.textContent ?? "").join("");
    const labels = [...(each.labels ?? [])].map((label) => label.textContent).join("");
    return !(each.getAttribute("aria-label") || labelled || labels || each.innerText?.trim());
}).map((each) => each.outerHTML)"""

TWICE = """() => {
    const ids = [...document.querySelectorAll("[id]")].map((each) => each.id);
    return ids.filter((id, at) => ids.indexOf(id) !== at);
}"""

FAINT = """() => {
    const channel = (value) => {
        const part = value / 255;
        return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    };
    const light = ([red, green, blue]) =>
        0.2126 * channel(red) + 0.7152 * channel(green) + 0.0722 * channel(blue);
    const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
    const ground = (each) => {
        for (let at = each; at; at = at.parentElement) {
            const color = numbers(getComputedStyle(at).backgroundColor);
            if (color.length === 3 || color[3] === 1) return color;
        }
        return [255, 255, 255];
    };
    return [...document.querySelectorAll("body *")].filter((each) =>
        each.checkVisibility() && !each.disabled && !each.classList.contains("hidden")
        && [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
    ).map((each) => {
        const [one, other] = [light(numbers(getComputedStyle(each).color)), light(ground(each))];
        const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        return [ratio, each.outerHTML.slice(0, 100)];
    }).filter(([ratio]) => ratio < 4.5);
}"""


def check(chat: ChatPage) -> None:
    """Every control has a name, no id is there twice, and all words stand out from their ground."""
    assert chat.page.evaluate(NAMELESS) == []
    assert chat.page.evaluate(TWICE) == []
    assert chat.page.evaluate(FAINT) == []


def test_names_and_contrast(somebody: Somebody) -> None:
    for scheme in ("light", "dark"):
        chat = somebody.page(somebody.window(color_scheme=scheme))
        check(chat)
        chat.say("What is the weather in Rome?")
        chat.button("Regenerate").click()
        chat.wait()
        chat.log.locator("summary").click()
        chat.say("Book a table for two")
        check(chat)
        chat.button("Edit").first.click()
        check(chat)
        chat.side.get_by_role("button", name="Rename").first.click()
        check(chat)
    tree = chat.log.aria_snapshot()
    assert 'heading "You" [level=2]' in tree
    assert 'heading "The agent" [level=2]' in tree


def test_the_skip_link(chat: ChatPage) -> None:
    """It leads to the message, and not to another conversation."""
    chat.say("Hello, I live in SF!")
    conversation = chat.id
    link = chat.page.get_by_role("link", name="To the message")
    link.focus()
    link.press("Enter")
    expect(chat.message).to_be_focused()
    chat.shows("Hello, I live in SF!", "Hello! I will remember: you live in SF.")
    assert chat.id == conversation


def test_with_the_keyboard_alone(chat: ChatPage) -> None:
    """From the first word to an edit, a version, an approval, a name and the end."""
    keyboard = chat.page.keyboard

    def to(name: str, *, back: bool = False) -> None:
        for _ in range(60):
            keyboard.press("Shift+Tab" if back else "Tab")
            focused = chat.page.evaluate(
                "document.activeElement.ariaLabel || document.activeElement.textContent.trim()"
            )
            if focused == name:
                return
        raise AssertionError(f"{name} is not reached")

    expect(chat.message).to_be_focused()
    keyboard.type("Hello, I live in SF!")
    keyboard.press("Shift+Enter")
    keyboard.type("And you?")
    keyboard.press("Enter")
    chat.wait()
    expect(chat.questions).to_have_text("Hello, I live in SF!\nAnd you?", use_inner_text=True)
    expect(chat.message).to_be_focused()

    to("Edit", back=True)
    keyboard.press("Enter")
    keyboard.press("Escape")
    expect(chat.button("Edit")).to_be_focused()
    keyboard.press("Enter")
    keyboard.press("Control+A")
    keyboard.type("Hello, I live in Oslo!")
    keyboard.press("Enter")
    chat.wait()
    chat.shows("Hello, I live in Oslo!", "Hello! I will remember: you live in Oslo.")
    to("Version before", back=True)
    keyboard.press("Space")
    expect(chat.log.get_by_text("1 / 2")).to_be_visible()
    expect(chat.button("Version after")).to_be_focused()

    chat.page.reload()
    expect(chat.message).to_be_focused()
    chat.wait()
    keyboard.type("Book a table for two")
    keyboard.press("Enter")
    chat.wait()
    to("Approve", back=True)
    keyboard.press("Enter")
    chat.wait()
    expect(chat.answers.last).to_have_text("There is a table for you in two.")

    name = chat.titles.inner_text()
    to(f"Rename {name}", back=True)
    keyboard.press("Enter")
    keyboard.type("A table")
    keyboard.press("Enter")
    chat.lists("A table")
    expect(chat.button("Rename A table")).to_be_focused()
    to("Delete A table")
    keyboard.press("Enter")
    to("Delete")
    keyboard.press("Enter")
    chat.lists()


def test_what_escape_stops(chat: ChatPage, server: ChatServer) -> None:
    """The answer, where one writes or reads; not where one searches, nor in mid-composition."""
    server.let_go(go=False)
    chat.begin("wait for me. Hello, I live in SF!")
    expect(chat.answers).to_have_text("Hello! ")
    chat.page.get_by_role("searchbox").press("Escape")
    chat.message.evaluate(
        """element => element.dispatchEvent(new KeyboardEvent(
            "keydown", {key: "Escape", isComposing: true, bubbles: true}))"""
    )
    chat.page.wait_for_timeout(300)
    expect(chat.button("Stop")).to_be_visible()
    chat.log.press("Escape")
    chat.wait()
    chat.shows("wait for me. Hello, I live in SF!")


def test_escape_that_closes_the_list(somebody: Somebody, server: ChatServer) -> None:
    """On a narrow screen; it stops no answer."""
    chat = somebody.page(somebody.window(viewport={"width": 360, "height": 640}))
    server.let_go(go=False)
    chat.begin("wait for me. Hello, I live in SF!")
    expect(chat.answers).to_have_text("Hello! ")
    chat.button("Show the list").click()
    chat.page.keyboard.press("Escape")
    expect(chat.side).to_be_hidden()
    server.let_go(go=True)
    chat.wait()
    chat.shows("wait for me. Hello, I live in SF!", "Hello! I will remember: you live in SF.")


def test_an_answer_that_ends_while_one_searches(chat: ChatPage, server: ChatServer) -> None:
    """It does not take the focus away, and what was said before is not said anew."""
    chat.say("What is the weather in Rome?")
    chat.log.locator("summary").click()
    chat.page.evaluate("window.first = document.querySelector('.turn')")
    server.let_go(go=False)
    chat.begin("wait for me. Hello, I live in SF!")
    expect(chat.answers).to_have_count(2)
    search = chat.page.get_by_role("searchbox")
    search.focus()
    server.let_go(go=True)
    chat.wait()
    expect(chat.button("Regenerate")).to_have_count(2)
    expect(search).to_be_focused()
    assert chat.page.evaluate("window.first === document.querySelector('.turn')")
    expect(chat.log).to_contain_text("It is sunny in Rome.")

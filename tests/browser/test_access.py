"""The page without a mouse, and without eyes."""

from __future__ import annotations

from playwright.sync_api import expect

from browser.conftest import Somebody
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
    to("Delete A table")
    keyboard.press("Enter")
    to("Delete")
    keyboard.press("Enter")
    chat.lists()

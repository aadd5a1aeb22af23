"""Whatever is said is shown as text: by users, models, tools, in titles."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from browser.conftest import ChatServer, Somebody
from browser.page import ChatPage

HOSTILE = {
    "markup": "<h1>Big</h1><b>bold</b><!-- --><table><tr><td>",
    "script": "<script>document.title = 'owned'</script>",
    "image": "<img src=x onerror=\"document.title = 'owned'\">",
    "svg": "<svg onload=\"document.title = 'owned'\"><use href='data:x'/></svg>",
    "link": "[here](javascript:document.title='owned') <a href='javascript:1'>here</a>",
    "style": "<style>* {display: none}</style><link rel=stylesheet href=//evil>",
    "frame": "<iframe srcdoc='<script>parent.document.title=1</script>'></iframe>",
    "template": "{{constructor.constructor('document.title=1')()}} ${document.title = 1}",
    "entities": "&lt;script&gt; &amp; &#x3c;b&#x3e;",
    "bidi": "safe \u202egnp.exe\u202c \u2066\u200f",
    "ansi": "\x1b[31mred\x1b[0m \x1b]8;;http://evil\x07link\x07",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_text_stays_text(chat: ChatPage, somebody: Somebody, text: str) -> None:
    """In a message, the arguments and the output of a tool, an answer, the list and the title."""
    made = "document.querySelectorAll('h1, script, img, iframe, a, style, link, table, svg').length"
    before = chat.page.evaluate(made)
    said = f"What is the weather? {text}"
    chat.say(said)
    expect(chat.questions).to_have_text(said)
    output = chat.answers.inner_text()
    assert output.startswith("It is sunny in ")
    called = chat.log.get_by_role("group").filter(has_text="get_weather")
    called.locator("summary").click()
    expect(called.locator("pre").first).to_be_visible()
    assert not set(called.inner_text()) & set("\u202e\u2066\u200f\x1b\x07"), "what does not show"

    chat.side.locator("li .icon").first.click()
    title = chat.page.get_by_role("textbox", name="Title")
    title.fill(text)
    title.press("Enter")
    chat.lists(text)
    chat.side.locator("li .icon").last.click()
    dialog = chat.page.get_by_role("dialog")
    expect(dialog.locator("bdi")).to_have_text(text)
    dialog.get_by_role("button", name="Cancel").click()

    chat.page.reload()
    expect(chat.questions).to_have_text(said)
    rows = 2  # of the list: a pencil and a bin
    assert chat.page.evaluate(made) == before + rows
    assert "owned" not in chat.page.title().replace(text, "")


def test_what_one_approves_is_what_one_sees(chat: ChatPage) -> None:
    chat.say("Book a table for \u202egnp-exe\u202c<b>two</b>")
    card = chat.log.get_by_role("group", name="Approval of book_table")
    expect(card.locator("pre")).to_contain_text("\\u202egnp-exe\\u202c<b>two</b>")


def test_a_megabyte(chat: ChatPage, server: ChatServer, somebody: Somebody) -> None:
    """Is shown whole, and again after a reload; the page goes on working."""
    long = "My book is " + "<b>&" * 250_000
    chat.say(long)
    chat.page.reload()
    expect(chat.questions).to_have_count(1)
    assert chat.questions.evaluate("element => element.textContent.length") == len(long)
    chat.button("New chat").click()
    chat.say("Hello, I live in SF!")
    chat.shows("Hello, I live in SF!", "Hello! I will remember: you live in SF.")
    stored = server.items(somebody.name, chat.id)
    assert [item["role"] for item in stored] == ["user", "assistant"]


def test_nothing_else_is_loaded_or_run(chat: ChatPage, somebody: Somebody) -> None:
    """The policy holds also against a script that got into the page."""
    policy = chat.page.request.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    somebody.expects = "Content Security Policy"
    chat.page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "document.title = 'owned'";
            document.body.append(script);
            const image = "<img src=data:, onerror='document.title = 1'>";
            document.body.insertAdjacentHTML("beforeend", image);
        }"""
    )
    assert chat.page.title() == "New chat"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ('{"to_account": 9007199254740993}', '{\n  "to_account": 9007199254740993\n}'),
        ('{"sum": 1e400, "of": []}', '{\n  "sum": 1e400,\n  "of": []\n}'),
        (
            '{"to":"Mia","to":["Tom",{ }]}',
            '{\n  "to": "Mia",\n  "to": [\n    "Tom",\n    {}\n  ]\n}',
        ),
        ('{"to": "{ [1, \\"M\\u00fcller\\"] }"}', '{\n  "to": "{ [1, \\"Müller\\"] }"\n}'),
        ('{"to": NaN }', '{"to": NaN }'),
        ('"{}"', '"{}"'),
        ("a\u00adb\u180ec\u3164d\u2800", "a\\u00adb\\u180ec\\u3164d\\u2800"),
        ("a\U000e0041\tb\nc\r", "a\\u{e0041}\tb\nc\\u000d"),
        ("[" * 100_000, None),
        ("[" * 3_000 + "]" * 3_000, None),
        ('"' + "long " * 200_000 + '"', None),
    ],
)
def test_a_card_shows_what_the_tool_gets(chat: ChatPage, given: str, shown: str | None) -> None:
    """Digit by digit and key by key; what is long or deep is shown, too."""
    chat.say("Book a table for two")
    chat.page.evaluate(
        """([id, given]) => {
            const [known] = JSON.parse(localStorage.getItem(`approvals ${id}`));
            const other = JSON.stringify([{...known, arguments: given}]);
            localStorage.setItem(`approvals ${id}`, other);
        }""",
        [chat.id, given],
    )
    chat.page.reload()
    words = chat.log.get_by_role("group", name="Approval of book_table").locator("pre")
    expect(words).to_have_count(1)
    text = words.evaluate("element => element.textContent")
    if shown is None:
        assert "".join(text.split()) == "".join(given.split())
    else:
        assert text == shown

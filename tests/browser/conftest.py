"""A browser, and examples/chat as it serves it."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, expect, sync_playwright
from processes import environment, free_port, wait_until_it_serves

from browser.page import ChatPage
from lakebase_sessions.local import LocalLakebase

CHAT_SERVER = Path(__file__).with_name("chat_server.py")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)

WAIT_MILLISECONDS = 30_000
"""The first answer of a server comes late on a busy machine."""
expect.set_options(timeout=WAIT_MILLISECONDS)

_users = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder take processes of their own."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.long)
            if CHROMIUM is None:
                reason = "no Chromium: `apt-get install chromium` brings what would run this"
                item.add_marker(pytest.mark.skip(reason=reason))


class ChatServer:
    """The example, in a process of its own; it can be ended and started again."""

    def __init__(self, variables: dict[str, str], folder: Path) -> None:
        self._variables = environment(variables)
        self._folder = folder
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        log = self._folder / "server.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, CHAT_SERVER, "--port", str(self._port)],
                cwd=self._folder,
                env=self._variables,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        wait_until_it_serves(self._process, f"{self.url}/health", log)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def let_go(self, *, go: bool) -> None:
        """Whether answers to "wait for me" go on behind their first word."""
        gate = self._folder / "go"
        gate.touch() if go else gate.unlink(missing_ok=True)

    def create(self, user: str, title: str) -> str:
        """A conversation in which nothing was said; its id."""
        answer = httpx.post(
            f"{self.url}/conversations", json={"title": title}, headers={"X-Forwarded-User": user}
        )
        made: str = answer.raise_for_status().json()["id"]
        return made

    def items(self, user: str, conversation: str) -> list[dict[str, Any]]:
        """What is stored, oldest first."""
        answer = httpx.get(
            f"{self.url}/conversations/{conversation}/items",
            params={"order": "asc", "limit": 100},
            headers={"X-Forwarded-User": user},
        )
        found: list[dict[str, Any]] = answer.raise_for_status().json()["data"]
        return found


@pytest.fixture(scope="package")
def server(
    local_for_run: LocalLakebase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChatServer]:
    database = f"lakebase_sessions_browser_{os.getpid()}"
    local_for_run.create_database(database)
    variables = local_for_run.environ | {
        "DATABRICKS_AUTH_TYPE": "pat",
        "DATABRICKS_APP_NAME": "chat",  # so that each test is a user of its own
        "PGHOST": local_for_run.host,
        "PGDATABASE": database,
    }
    started = ChatServer(variables, tmp_path_factory.mktemp("chat"))
    started.start()
    yield started
    started.kill()
    local_for_run.drop_database(database)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Chromium's sandbox does not run as root, as CI does.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Somebody:
    """A user with a browser: what it says on its console fails the test."""

    def __init__(self, browser: Browser, server: ChatServer) -> None:
        self.name = f"user-{os.getpid()}-{next(_users)}@example.com"
        self.complaints: list[str] = []
        self.expects: str | None = None
        """Words of complaints that are part of a test: the browser tells of each failed request."""
        self._browser = browser
        self._server = server
        self._contexts: list[BrowserContext] = []

    def window(self, **options: Any) -> BrowserContext:
        """A browser of its own: nothing kept from another one."""
        context = self._browser.new_context(
            base_url=self._server.url,
            extra_http_headers={"X-Forwarded-User": self.name},
            **{"viewport": {"width": 1100, "height": 720}, "color_scheme": "light"} | options,
        )
        context.set_default_timeout(WAIT_MILLISECONDS)
        context.on("console", self._hear)
        context.on("weberror", lambda error: self._complain(str(error.error)))
        self._contexts.append(context)
        return context

    def page(self, context: BrowserContext | None = None, address: str = "/") -> ChatPage:
        page = (context or self.window()).new_page()
        page.goto(address)
        return ChatPage(page)

    def _hear(self, said: ConsoleMessage) -> None:
        if said.type == "error":
            self._complain(said.text)

    def _complain(self, text: str) -> None:
        if self.expects is None or self.expects not in text:
            self.complaints.append(text)

    def close(self) -> None:
        for context in self._contexts:
            context.close()


@pytest.fixture
def somebody(browser: Browser, server: ChatServer) -> Iterator[Somebody]:
    server.let_go(go=True)
    somebody = Somebody(browser, server)
    yield somebody
    somebody.close()
    assert somebody.complaints == []


@pytest.fixture
def chat(somebody: Somebody) -> ChatPage:
    return somebody.page()


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Any:
    """Writes a picture for the docs, where `--pictures` asks for them."""
    folder = Path(__file__).parents[2] / "docs" / "images"

    def write(chat: ChatPage, name: str) -> None:
        if request.config.getoption("--pictures"):
            folder.mkdir(exist_ok=True)
            chat.page.screenshot(path=folder / f"chat_{name}.png", animations="disabled")

    return write

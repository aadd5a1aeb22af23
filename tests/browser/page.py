"""The chat page, as somebody uses it."""

from __future__ import annotations

from playwright.sync_api import Locator, Page, Route, expect


class ChatPage:
    """What one does on the page and sees there, found by what a screen reader would say."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.message = page.get_by_role("textbox", name="Message", exact=True)
        self.log = page.get_by_role("log")
        self.questions = self.log.locator(".mine")
        self.answers = self.log.locator(".answer")
        self.alert = page.get_by_role("alert")
        self.side = page.get_by_role("complementary", name="Conversations")
        self.titles = self.side.locator(".open")

    @property
    def id(self) -> str:
        """Of the conversation that is shown."""
        return self.page.url.partition("#")[2]

    def begin(self, text: str) -> None:
        """Say something, and do not wait for the answer."""
        self.message.fill(text)
        self.message.press("Enter")

    def say(self, text: str) -> None:
        self.begin(text)
        self.wait()

    def wait(self) -> None:
        """Until nothing is on its way."""
        expect(self.button("Send")).to_be_visible()
        expect(self.log).to_have_attribute("aria-busy", "false")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def shows(self, *texts: str) -> None:
        """Questions and answers, in their order."""
        expect(self.log.locator(".said:not(pre)")).to_have_text(list(texts))

    def lists(self, *titles: str) -> None:
        expect(self.titles).to_have_text(list(titles))


class Held:
    """Calls to an address, which do not leave the browser until somebody lets them go."""

    def __init__(self, page: Page, address: str) -> None:
        self.open = False
        """Whether calls that come from now on are let through."""
        self._page = page
        self._routes: list[Route] = []
        page.route(address, self._take)

    def _take(self, route: Route) -> None:
        if self.open:
            route.continue_()
        else:
            self._routes.append(route)

    def wait(self) -> list[Route]:
        """Until there is one."""
        while not self._routes:
            self._page.wait_for_timeout(20)
        return self._routes

    def let_go(self) -> None:
        self.open = True
        for route in self._routes:
            route.continue_()

"""Chromium without a window, driven as a user would, on the chat page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

LIMIT_S = 60
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# As root, and in containers with little shared memory.
FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1100,800")


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser for the time of a block; the test is skipped where there is none."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("there is no Chromium with its driver (chromium and chromium-driver) here")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in FLAGS:
        options.add_argument(flag)
    service = webdriver.ChromeService(driver, log_output=os.devnull)
    with webdriver.Chrome(options, service) as chrome:
        yield chrome


class ChatPage:
    """The page as its user sees it."""

    def __init__(self, browser: webdriver.Chrome, url: str) -> None:
        """Open it with nothing remembered from before."""
        self.browser = browser
        self.url = url
        # The page itself stores the conversation when it is left: forget it from elsewhere.
        self.browser.get(f"{self.url}/web/icon.svg")
        self.run("localStorage.clear(); sessionStorage.clear()")
        self.open()

    def open(self) -> None:
        """Load it, and wait until it knows the models or why it does not."""
        self.browser.get(f"{self.url}/")
        self.wait(lambda: self.find("#model option") or self.find("#notice").is_displayed())

    def find(self, selector: str) -> Any:
        """The first element, or None."""
        return next(iter(self.all(selector)), None)

    def all(self, selector: str) -> list[WebElement]:
        """Every element."""
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """The text of each element, hidden ones included."""
        return [each.get_property("textContent") for each in self.all(selector)]  # type: ignore[misc]

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns that runs in the page."""
        return self.browser.execute_script(script, *arguments)  # type: ignore[no-untyped-call]

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Wait until a condition holds."""
        return WebDriverWait(self.browser, LIMIT_S, 0.02).until(lambda browser: condition())

    def type(self, text: str) -> None:
        """Write into the field for messages, without sending."""
        self.find("#input").send_keys(text)

    def send(self, text: str) -> None:
        """Send a message with the Enter key."""
        self.type(text + Keys.ENTER)

    def ask(self, text: str) -> str:
        """Send a message and wait for the end of its answer; the answer's text."""
        num_before = len(self.all("article"))
        self.send(text)
        self.wait(lambda: len(self.all("article")) == num_before + 2)
        return self.last_answer()

    def last_answer(self) -> str:
        """Wait for the end of the running answer; its text as it is shown."""
        self.wait(lambda: self.find("#send").is_displayed())
        # An answer that has ended is drawn once more.
        self.wait(lambda: not self.all("article.running"))
        text: str = self.all(".assistant .markdown")[-1].text
        return text

    def press(self, label: str, within: str = "article:last-child") -> None:
        """Click the button that says `label`."""
        selector = f"{within} button"
        (button,) = [each for each in self.all(selector) if each.accessible_name == label]
        # Some are shown only under the pointer.
        self.run("arguments[0].click()", button)

    def set_field(self, name: str, value: str) -> None:
        """Change a setting."""
        self.press("Settings", "header")
        field = self.find(f"#settings [name={name}]")
        field.clear()
        field.send_keys(value)
        self.press("Done", "#settings")

    def stored(self) -> str:
        """All that the browser keeps for good."""
        text: str = self.run("return JSON.stringify(localStorage)")
        return text

    def complaints(self) -> list[str]:
        """What the browser has written to its console since it was last asked."""
        entries = self.browser.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

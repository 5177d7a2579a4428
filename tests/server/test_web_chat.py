"""The chat page in Chromium: with the real model, and with answers that a test spells out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from browser import ChatPage, chromium
from chat_stub import ChatStub, File, StubAnswer, chat_stub, says
from powerserve.server.surface import Call, Reply
from powerserve.server.web.page import web_surface
from server_process import ServerProcess, serving, wait_until


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with chromium() as chrome:
        yield chrome


@pytest.fixture(scope="module")
def files() -> dict[str, File]:
    """The page's files, with the headers the server sends."""
    found = {}
    for operation in web_surface().operations:
        reply = asyncio.run(operation.handler(Call(b"")))  # type: ignore[arg-type]
        assert isinstance(reply, Reply)
        headers = dict(reply.headers) | {"content-type": reply.content_type}
        found[operation.path] = File(reply.encoded(), headers)
    return found


@pytest.fixture
def stub(files: dict[str, File]) -> Iterator[ChatStub]:
    with chat_stub(files) as running:
        yield running


@pytest.fixture
def page(browser: webdriver.Chrome, stub: ChatStub) -> Iterator[ChatPage]:
    """The page of the stub; no script may have failed, nor anything offended the policy."""
    opened = ChatPage(browser, stub.url)
    yield opened
    about_the_network = ("Failed to load resource", "net::ERR_")
    failures = [
        text for text in opened.complaints() if not any(each in text for each in about_the_network)
    ]
    assert failures == []


class TestWithTheModel:
    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, smollm2: Path) -> Iterator[ServerProcess]:
        """The same question has the same answer there, whatever came before."""
        with serving("-m", smollm2, "-c", "2048", "--deterministic") as process:
            yield process

    @pytest.fixture
    def page(self, browser: webdriver.Chrome, server: ServerProcess) -> ChatPage:
        return ChatPage(browser, server.url)

    def test_its_answer_is_shown(self, page: ChatPage, http: httpx.Client) -> None:
        question = "Say 1 2 3 1 2 3 1 2 3 1 2 3"
        request = {
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 12,
        }
        answer = http.post("/v1/chat/completions", json=request).json()
        page.set_field("temperature", "0")
        page.set_field("max_tokens", "12")
        shown = page.ask(question)
        assert shown == answer["choices"][0]["message"]["content"].strip()
        (facts,) = page.texts(".facts")
        num_generated = answer["usage"]["completion_tokens"]
        assert facts.startswith(f"{num_generated} tokens · ") and " tokens/s · " in facts
        assert f"prompt {answer['usage']['prompt_tokens']} tokens" in facts

    def test_stopping_ends_the_work_of_the_server(self, page: ChatPage, http: httpx.Client) -> None:
        page.send("Write a very long story about the sea, in twenty chapters.")
        page.wait(lambda: page.texts(".assistant .markdown")[0])
        page.find("#stop").click()
        page.last_answer()
        wait_until(lambda: http.get("/slots").json() == [])
        assert page.texts(".facts")[0].endswith("stopped")


def test_an_answer_is_shown_while_it_comes(page: ChatPage, stub: ChatStub) -> None:
    gate = threading.Event()
    stub.answer = says("First", " second.", gate=gate)
    page.send("Hi")
    page.wait(lambda: page.texts(".assistant .markdown") == ["First"])
    assert page.find("#stop").is_displayed() and not page.find("#send").is_displayed()
    gate.set()
    assert page.last_answer() == "First second."
    assert page.texts(".facts")[0].startswith("2 tokens · ")


@pytest.mark.parametrize("way", ["button", "escape"])
def test_stop_keeps_what_has_come(page: ChatPage, stub: ChatStub, way: str) -> None:
    gate = threading.Event()
    stub.answer = says("Kept", " lost", gate=gate)
    page.send("Hi")
    page.wait(lambda: page.texts(".assistant .markdown") == ["Kept"])
    if way == "button":
        page.find("#stop").click()
    else:
        page.type(Keys.ESCAPE)
    assert page.last_answer() == "Kept"
    assert page.texts(".facts") == ["about 1 token · stopped"]
    assert page.texts(".error") == [""]
    gate.set()
    stub.answer = says("Next.")
    assert page.ask("Go on") == "Next."
    assert [turn["content"] for turn in stub.bodies[-1]["messages"]] == ["Hi", "Kept", "Go on"]


ATTACK = """<script>document.title = "owned"</script>
<img src=x onerror='document.title = "owned"'> and **<b onmouseover=alert(1)>bold</b>**

# <svg onload='document.title = "owned"'>

- <iframe src="javascript:parent.document.title = 'owned'"></iframe>
- `<u>code</u>`

| <script>1</script> | b |
|---|---|
| <a href="javascript:1">x</a> | [y](javascript:document.title='owned') |

[z]( javascript:alert(1) ) [w](data:text/html,x) ![i](http://127.0.0.1/i.png) [<i>l</i>](http://a.b/?"><script>)
```<script>
</code></pre><script>document.title = "owned"</script>
```
"""


def test_markup_in_an_answer_is_text(page: ChatPage, stub: ChatStub) -> None:
    stub.answer = StubAnswer(
        ({"reasoning_content": ATTACK}, *({"content": character} for character in ATTACK))
    )
    page.ask(ATTACK.replace("\n", " "))
    for selector in ("script", "img", "svg", "iframe", "b", "i", "u"):
        assert page.all(f"#log {selector}") == []
    assert page.browser.title == "PowerServe"
    assert {link.get_property("protocol") for link in page.all("#log a")} <= {"http:", "https:"}
    assert {link.get_dom_attribute("rel") for link in page.all("#log a")} == {"noopener noreferrer"}
    (shown,) = page.texts(".assistant .markdown")
    for piece in ("<img src=x onerror=", "<iframe src=", "<svg onload=", "</code></pre><script>"):
        assert piece in shown


def test_names_of_models_stay_text(browser: webdriver.Chrome, stub: ChatStub) -> None:
    """Whoever can write a file into the folder of models chooses its name."""
    names = ('<img src=x onerror="document.title = 1">', '"></option><script>document.title=2//')
    stub.models = names
    page = ChatPage(browser, stub.url)
    assert page.texts("#model option") == list(names)
    assert page.all("#model img") == page.all("header script") == []
    page.ask("Hi")
    assert page.browser.title == "PowerServe"
    assert stub.bodies[-1]["model"] in names


MARKDOWN = """Some *slanted*, **bold**, ***both***, ~~struck~~ and `co*d*e` words, 2 * 3 * 4, a_b_c.

1. one
2. two
   - inner

> quoted
> lines

| left | right |
|:-----|------:|
| a\\|b | **1** |

## Title

See [the docs](https://example.com/a_(b)) or https://example.org/x_y.

---

```python
def f():

    return "**not bold**"
```
"""

HTML_OF_MARKDOWN = (
    "<p>Some <em>slanted</em>, <strong>bold</strong>, <strong><em>both</em></strong>, "
    "<del>struck</del> and <code>co*d*e</code> words, 2 * 3 * 4, a_b_c.</p>"
    '<ol start="1"><li>one</li><li>two<ul><li>inner</li></ul></li></ol>'
    "<blockquote><p>quoted<br>lines</p></blockquote>"
    '<div><table><thead><tr><th>left</th><th class="right">right</th></tr></thead>'
    '<tbody><tr><td>a|b</td><td class="right"><strong>1</strong></td></tr></tbody></table></div>'
    "<h3>Title</h3>"
    '<p>See <a href="https://example.com/a_(b)">the docs</a> or '
    '<a href="https://example.org/x_y">https://example.org/x_y</a>.</p>'
    "<hr>"
    '<div><pre><code>def f():\n\n    return "**not bold**"</code></pre></div>'
)

SIMPLIFIED = """
const copy = document.querySelector(".assistant .markdown").cloneNode(true);
for (const bar of copy.querySelectorAll(".bar")) bar.remove();
for (const node of copy.querySelectorAll("*")) {
  for (const { name, value } of [...node.attributes]) {
    if (!["href", "start"].includes(name) && value !== "right") node.removeAttribute(name);
  }
}
return copy.innerHTML;
"""


@pytest.mark.parametrize("step", [1, 7, len(MARKDOWN)])
def test_markdown_is_rendered_however_it_is_cut(page: ChatPage, stub: ChatStub, step: int) -> None:
    pieces = [MARKDOWN[start : start + step] for start in range(0, len(MARKDOWN), step)]
    stub.answer = says(*pieces)
    page.ask("Show me everything")
    assert page.run(SIMPLIFIED) == HTML_OF_MARKDOWN
    assert page.texts(".code .bar span") == ["python"]


@pytest.mark.parametrize(
    "piece",
    [
        "**a ** ",
        "*a _b ~~c ",
        "[a](",
        "`a ``b ",
        "|a|b|\n|-|-|\n",
        "> - 1. ",
        "- a\n  - b\n\n",
        "***",
    ],
)
def test_unfinished_marks_without_end_do_no_harm(
    page: ChatPage, stub: ChatStub, piece: str
) -> None:
    stub.answer = says(piece * 2_000)
    page.ask("Repeat this for ever")
    (shown,) = page.texts(".assistant .markdown")
    letters = [character for character in piece if character.isalpha()]
    assert all(shown.count(letter) >= 1_999 for letter in letters)
    assert page.texts(".error") == [""]


def test_code_can_be_copied(page: ChatPage, stub: ChatStub) -> None:
    page.browser.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]},
    )
    stub.answer = says("```sh\necho 'a  b'\nls\n```\n")
    page.ask("Code?")
    page.press("Copy", ".code")
    page.wait(lambda: page.texts(".code button") == ["Copied"])
    assert page.run("return navigator.clipboard.readText()") == "echo 'a  b'\nls"


def test_reasoning_is_folded(page: ChatPage, stub: ChatStub) -> None:
    stub.answer = StubAnswer(({"reasoning_content": "Hmm, two."}, {"content": "Two."}))
    assert page.ask("One and one?") == "Two."
    assert page.texts(".assistant summary") == ["Reasoning"]
    thoughts = page.find(".assistant details .text")
    assert not thoughts.is_displayed()
    page.find(".assistant summary").click()
    assert thoughts.text == "Hmm, two."
    page.ask("And now?")
    assert stub.bodies[-1]["messages"][1] == {"role": "assistant", "content": "Two."}


def test_the_chosen_model_is_asked_and_remembered(page: ChatPage, stub: ChatStub) -> None:
    assert page.texts("#model option") == ["small", "large"]
    page.find("#model option:last-child").click()
    page.open()
    page.ask("Hi")
    assert stub.bodies[-1]["model"] == "large"


def test_settings_reach_the_request(page: ChatPage, stub: ChatStub) -> None:
    page.ask("Hi")
    assert stub.bodies[-1].keys() == {"model", "messages", "stream", "stream_options"}
    values = {"temperature": "0.25", "top_p": "0.5", "max_tokens": "9", "seed": "3"}
    for name, value in (values | {"system": "Be brief."}).items():
        page.set_field(name, value)
    page.open()
    page.ask("Again")
    body = stub.bodies[-1]
    assert {name: body[name] for name in values} == {
        "temperature": 0.25,
        "top_p": 0.5,
        "max_tokens": 9,
        "seed": 3,
    }
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}


def test_a_key_is_asked_for_and_not_kept_for_good(page: ChatPage, stub: ChatStub) -> None:
    stub.key = "secret-7"
    page.open()
    page.wait(lambda: page.find("#key-prompt").is_displayed())
    page.find("#key-prompt [name=key]").send_keys("secret-7" + Keys.ENTER)
    page.wait(lambda: page.all("#model option"))
    assert not page.find("#key-prompt").is_displayed() and not page.find("#notice").is_displayed()
    assert page.ask("Hi") == "Hello there."
    assert stub.headers[-1]["Authorization"] == "Bearer secret-7"
    assert "secret-7" not in page.stored()


def test_a_message_can_be_edited_and_an_answer_made_again(page: ChatPage, stub: ChatStub) -> None:
    page.ask("One")
    page.ask("Two")
    assert [turn["content"] for turn in stub.bodies[-1]["messages"]] == [
        *("One", "Hello there.", "Two"),
    ]
    stub.answer = says("Another.")
    page.press("Regenerate")
    page.wait(lambda: page.last_answer() == "Another.")
    assert [turn["content"] for turn in stub.bodies[-1]["messages"]][-1] == "Two"
    page.press("Edit", "article:first-child")
    field = page.find("article textarea")
    field.clear()
    field.send_keys("Changed" + Keys.ENTER)
    page.wait(lambda: len(page.all("article")) == 2)
    assert page.last_answer() == "Another."
    assert stub.bodies[-1]["messages"] == [{"role": "user", "content": "Changed"}]


def test_the_conversation_outlives_the_page_until_it_is_cleared(page: ChatPage) -> None:
    page.ask("Remember me")
    page.open()
    assert page.texts("article > .text, .markdown") == ["Remember me", "Hello there."]
    page.press("New conversation", "header")
    page.wait(lambda: not page.all("article"))
    page.open()
    assert page.all("article") == [] and "Remember me" not in page.stored()


def test_what_an_older_page_stored_does_no_harm(page: ChatPage) -> None:
    for stored in ("{", "3", '[3, {"role": "system"}, {"role": "user", "content": "fine"}]'):
        page.browser.get(f"{page.url}/web/icon.svg")
        page.run("localStorage.setItem('powerserve.conversation', arguments[0])", stored)
        page.run("localStorage.setItem('powerserve.settings', arguments[0])", "[")
        page.open()
    assert page.texts("article > .text") == ["fine"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (StubAnswer(status=503, error="the server is full"), "The server is full."),
        (says("Half", error="the engine failed"), "The engine failed."),
    ],
)
def test_errors_are_told_in_sentences(
    page: ChatPage, stub: ChatStub, answer: StubAnswer, told: str
) -> None:
    stub.answer = answer
    assert page.ask("Hi") == ("Half" if answer.deltas else "")
    assert page.texts(".error") == [told]
    stub.answer = says("Now.")
    page.press("Regenerate")
    page.wait(lambda: page.last_answer() == "Now.")
    assert stub.bodies[-1]["messages"] == [{"role": "user", "content": "Hi"}]


def test_a_broken_connection_is_no_end_of_an_answer(page: ChatPage, stub: ChatStub) -> None:
    gate = threading.Event()
    stub.answer = says("Half", is_cut=True, gate=gate)
    page.send("Hi")
    page.wait(lambda: page.texts(".assistant .markdown") == ["Half"])
    gate.set()
    assert page.last_answer() == "Half"
    assert page.texts(".error") == ["The connection ended before the answer did."]


def test_shift_and_enter_begin_a_line(page: ChatPage, stub: ChatStub) -> None:
    page.type("one" + Keys.SHIFT + Keys.ENTER + Keys.NULL)
    page.ask("two")
    assert stub.bodies[-1]["messages"][0]["content"] == "one\ntwo"
    page.send("   ")
    assert len(stub.bodies) == 1 and len(page.all("article")) == 2


def test_dark_and_light(page: ChatPage) -> None:
    def brightness() -> int:
        colour = page.run("return getComputedStyle(document.body).backgroundColor")
        return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(",")))

    preferred = {"name": "prefers-color-scheme", "value": "dark"}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [preferred]})
    assert brightness() < 3 * 64
    page.press("Dark colours", "header")
    assert brightness() > 3 * 192
    page.open()
    assert brightness() > 3 * 192
    assert page.find("#theme").get_dom_attribute("aria-pressed") == "false"
    page.press("Dark colours", "header")
    assert brightness() < 3 * 64
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


WIDE = f"""{"long" * 60} [{"link" * 50}](https://example.com/{"x" * 200})

```
{"code " * 60}
```

| {" | ".join("column" for _ in range(20))} |
|{"---|" * 20}
| {" | ".join("value" for _ in range(20))} |
"""


@pytest.fixture
def phone(page: ChatPage) -> Iterator[ChatPage]:
    """The page on a small phone."""
    screen = {"width": 320, "height": 640, "deviceScaleFactor": 2, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    yield page
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_phone_needs_no_sideways_scrolling(phone: ChatPage, stub: ChatStub) -> None:
    stub.models = ("a-model-with-a-very-long-name-" * 3,)
    stub.answer = says(WIDE)
    phone.open()
    phone.ask("wide" * 60)
    assert widths(phone) == (320, 320)
    assert phone.run("return document.getElementById('scroller').scrollWidth") <= 320
    for button in phone.all("header button, #send"):
        left, width = button.rect["x"], button.rect["width"]
        assert left >= 0 and left + width <= 320
    phone.press("Settings", "header")
    assert widths(phone) == (320, 320)


def widths(page: ChatPage) -> tuple[int, int]:
    """What is visible, and what could be scrolled to. A page that is too wide widens both."""
    return tuple(page.run("return [innerWidth, document.documentElement.scrollWidth]"))


def test_everything_has_a_name_for_those_who_cannot_see_it(page: ChatPage) -> None:
    page.ask("Hi")
    page.press("Edit", "article:first-child")
    assert page.find("#log").aria_role == "log"
    for opener in (None, "Settings"):
        if opener:
            page.press(opener, "header")
        scope = "dialog[open]" if opener else "body"
        for control in page.all(f"{scope} :is(button, select, input, textarea)"):
            if control.is_displayed():
                assert control.accessible_name, control.get_property("outerHTML")

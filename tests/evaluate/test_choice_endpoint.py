"""Servers that answer questions: what they are sent, and what their answers mean."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from powerserve.core.errors import ConfigError, UsageError
from powerserve.evaluate.multiple_choice.chooser import ChooseBy, ImagesRefusedError
from powerserve.evaluate.multiple_choice.endpoint import Endpoint, EndpointChooser
from powerserve.evaluate.multiple_choice.question import Question
from stub_endpoint import Reply, Request, chat_reply, error_reply, stub_endpoint

QUESTION = Question("rivers", "2", "Is it wet?", ("no", "yes"), "B")
EXAMPLE = Question("rivers", "1", "Is it dry?", ("no", "yes"), "A")


def chooser(url: str, choose_by: ChooseBy = ChooseBy.GENERATION, key: str = "") -> EndpointChooser:
    endpoint = Endpoint(url, "some-model", key, waits_s=(0.0, 0.0))
    return EndpointChooser(endpoint, choose_by, 12)


def with_logprobs(logprobs: Any) -> Reply:
    return 200, {"choices": [{"text": " x", "logprobs": logprobs}]}


def test_a_chat_is_asked_for_a_short_certain_reply() -> None:
    with stub_endpoint(lambda _: chat_reply("It is B.")) as stub:
        choice = chooser(f"{stub.url}/v1/", key="secret").choose(QUESTION, [EXAMPLE])
    assert (choice.letter, choice.reply) == ("B", "It is B.")
    assert stub.paths == ["/v1/chat/completions"]
    (request,) = stub.requests
    assert (request["model"], request["max_tokens"], request["temperature"]) == (
        "some-model",
        12,
        0,
    )
    assert [each["role"] for each in request["messages"]] == ["user", "assistant", "user"]
    assert stub.keys == ["Bearer secret"]


@pytest.mark.parametrize(
    "logprobs",
    [
        {"top_logprobs": [{" C": -0.1, " A": -3.0, "B": -2.0, " the": -0.5}]},
        {"content": [{"top_logprobs": [
            {"token": " A", "logprob": -3.0}, {"token": "B", "logprob": -2.0},
            {"token": " C", "logprob": -0.1}]}]},
    ],
)  # fmt: skip
def test_the_likeliest_option_is_chosen(logprobs: Any) -> None:
    """C is likelier still, but no option."""
    with stub_endpoint(lambda _: with_logprobs(logprobs)) as stub:
        choice = chooser(stub.url, ChooseBy.LOGPROB).choose(QUESTION, [])
    assert choice.letter == "B"
    assert stub.paths == ["/v1/completions"] and stub.keys == [None]
    assert stub.requests[0]["prompt"].endswith("Is it wet?\nA. no\nB. yes\nAnswer:")
    assert stub.requests[0]["max_tokens"] == 1


def test_no_option_among_the_likeliest_tokens_is_no_answer() -> None:
    with stub_endpoint(lambda _: with_logprobs({"top_logprobs": [{" the": -0.5}]})) as stub:
        assert chooser(stub.url, ChooseBy.LOGPROB).choose(QUESTION, []).letter is None


def pictured(tmp_path: Path, text: str) -> Question:
    for name in ("one.png", "two.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    images = (tmp_path / "one.png", tmp_path / "two.jpg")
    return Question("art", "1", text, ("x", "y"), "A", images)


def as_text(content: list[dict[str, Any]]) -> list[str]:
    """Parts of a message: texts, and the files that images came from."""
    shown = []
    for part in content:
        if part["type"] == "text":
            shown.append(part["text"])
        else:
            kind, _, data = part["image_url"]["url"].partition(";base64,")
            shown.append(f"{kind}={base64.b64decode(data).decode()}")
    return shown


def test_every_image_comes_where_the_text_names_it(tmp_path: Path) -> None:
    question = pictured(tmp_path, "First <image 2> then <image 1>?")
    with stub_endpoint(lambda _: chat_reply("A")) as stub:
        assert chooser(stub.url).choose(question, []).letter == "A"
    first, two, then, one, rest = as_text(stub.requests[0]["messages"][0]["content"])
    assert (first, two, then, one) == (
        *("First ", "data:image/jpeg=two.jpg"),
        *(" then ", "data:image/png=one.png"),
    )
    assert rest.startswith("?\nA. x\nB. y")


def test_an_image_that_the_text_does_not_name_comes_first(tmp_path: Path) -> None:
    question = pictured(tmp_path, "What is <image 2>, and <image 9>?")
    with stub_endpoint(lambda _: chat_reply("A")) as stub:
        chooser(stub.url).choose(question, [])
    one, text, two, *_ = as_text(stub.requests[0]["messages"][0]["content"])
    assert (one, text, two) == (
        *("data:image/png=one.png", "What is "),
        "data:image/jpeg=two.jpg",
    )


def test_a_server_without_eyes_refuses_images_only(tmp_path: Path) -> None:
    def answer(request: Request) -> Reply:
        if isinstance(request["messages"][-1]["content"], list):
            return error_reply(400, "image input is not supported")
        return chat_reply("A")

    with stub_endpoint(answer) as stub:
        asked = chooser(stub.url)
        with pytest.raises(ImagesRefusedError, match="image input is not supported"):
            asked.choose(pictured(tmp_path, "?"), [])
        assert asked.choose(QUESTION, []).letter == "A"


def test_completions_have_no_images(tmp_path: Path) -> None:
    with pytest.raises(ImagesRefusedError, match="--choose-by generation"):
        chooser("http://localhost:1", ChooseBy.LOGPROB).choose(pictured(tmp_path, "?"), [])


def test_a_missing_image_is_told(tmp_path: Path) -> None:
    question = Question("art", "1", "?", ("x",), "A", (tmp_path / "gone.png",))
    with pytest.raises(ConfigError, match=r"gone.png cannot be read: No such file"):
        chooser("http://localhost:1").choose(question, [])


def test_a_busy_server_is_asked_again() -> None:
    replies = iter([error_reply(503, "loading"), error_reply(429, "queue"), chat_reply("B")])
    with stub_endpoint(lambda _: next(replies)) as stub:
        assert chooser(stub.url).choose(QUESTION, []).letter == "B"
    with stub_endpoint(lambda _: error_reply(503, "loading")) as stub:
        with pytest.raises(UsageError, match=r"503 .*: loading"):
            chooser(stub.url).choose(QUESTION, [])
        assert len(stub.requests) == 3


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (error_reply(401, "wrong key"), "answered 401 .*: wrong key"),
        (error_reply(400, "no such model"), "answered 400 .*: no such model"),
        ((404, b"<html>nothing here</html>"), "answered 404 .*: <html>nothing here"),
        ((404, b""), "it does not say why"),
        ((404, {"error": "flat"}), "flat"),
        ((200, b"<html>"), "does not answer as OpenAI's API does"),
        ((200, {"choices": []}), "does not answer as OpenAI's API does"),
        ((200, {}), "does not answer as OpenAI's API does"),
    ],
)
def test_what_a_server_refuses_is_told(reply: Reply, sentence: str) -> None:
    with stub_endpoint(lambda _: reply) as stub, pytest.raises(UsageError, match=sentence):
        chooser(stub.url).choose(QUESTION, [])


@pytest.mark.parametrize("logprobs", [None, {}, {"top_logprobs": []}, {"content": []}])
def test_a_server_without_log_probabilities(logprobs: Any) -> None:
    with (
        stub_endpoint(lambda _: with_logprobs(logprobs)) as stub,
        pytest.raises(UsageError, match="gives no log-probabilities; use --choose-by generation"),
    ):
        chooser(stub.url, ChooseBy.LOGPROB).choose(QUESTION, [])


def test_where_no_server_is(unused_port: int) -> None:
    with pytest.raises(UsageError, match="refused the connection; is a server running at"):
        chooser(f"http://127.0.0.1:{unused_port}").choose(QUESTION, [])
    for url in ("localhost:8080", "http://", "ftp://host"):
        with pytest.raises(UsageError, match="is not the URL of a server"):
            Endpoint(url, "m")


@pytest.fixture
def unused_port() -> int:
    with stub_endpoint(lambda _: (200, {})) as stub:
        return int(stub.url.rpartition(":")[2])

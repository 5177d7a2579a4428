"""Anthropic's messages in the form that templates take."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from powerserve.server.anthropic.conversation import InputMessage, template_messages
from powerserve.server.anthropic.fields import MessagesRequest
from powerserve.server.errors import ApiError
from powerserve.server.request import split_prefill

USER, ASSISTANT = "user", "assistant"
CALL = {"type": "tool_use", "id": "toolu_1", "name": "get_time", "input": {"zone": "CET"}}


def converted(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    """What the template gets of messages given as role and content."""
    values = [{"role": role, "content": content} for role, content in turns]
    return template_messages(None, msgspec.convert(values, list[InputMessage]))


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def result(**fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "toolu_1"} | fields


def test_blocks_of_text_become_one() -> None:
    assert converted((USER, [text("a"), text("b")])) == [{"role": USER, "content": "a\nb"}]


def test_neighbours_of_the_same_role_become_one() -> None:
    assert converted((USER, "a"), (USER, "b"), (ASSISTANT, "c")) == [
        {"role": USER, "content": "a\nb"},
        {"role": ASSISTANT, "content": "c"},
    ]


def test_an_assistant_s_turn_keeps_thoughts_text_and_calls_together() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "x"}
    hidden = {"type": "redacted_thinking", "data": "x"}
    other = CALL | {"id": "toolu_2"}
    (message,) = converted((ASSISTANT, [thought, hidden, text("Wait."), CALL, other]))
    assert message["content"] == "Wait." and message["reasoning_content"] == "hm"
    assert [call["id"] for call in message["tool_calls"]] == ["toolu_1", "toolu_2"]
    assert message["tool_calls"][0]["function"] == {
        "name": "get_time",
        "arguments": {"zone": "CET"},
    }


@pytest.mark.parametrize(
    ("block", "content"),
    [
        (result(content="12:00"), "12:00"),
        (result(content=[text("12"), text("00")]), "12\n00"),
        (result(content="no clock", is_error=True), "Error: no clock"),
        (result(), ""),
    ],
)
def test_results_have_a_role_of_their_own(block: dict[str, Any], content: str) -> None:
    messages = converted((ASSISTANT, [CALL]), (USER, [block, text("So?")]))
    assert messages[1:] == [
        {"role": "tool", "tool_call_id": "toolu_1", "name": "get_time", "content": content},
        {"role": USER, "content": "So?"},
    ]


@pytest.mark.parametrize(
    ("turn", "place"),
    [
        ((USER, [text("a"), CALL]), r"messages\[0\].content\[1\].*tool_use"),
        ((USER, [result(content="x")]), r"content\[0\].tool_use_id.*toolu_1"),
        ((ASSISTANT, [result(content="x")]), "tool_result"),
        ((USER, [{"type": "document"}]), "'document' cannot be read"),
    ],
)
def test_blocks_where_they_cannot_be(turn: tuple[str, Any], place: str) -> None:
    with pytest.raises(ApiError, match=place):
        converted(turn)


def test_images_in_results_are_refused() -> None:
    with pytest.raises(ApiError, match=r"messages\[1\].content\[0\].content\[0\].*image"):
        converted((ASSISTANT, [CALL]), (USER, [result(content=[{"type": "image"}])]))


def test_the_last_text_of_the_assistant_is_continued() -> None:
    turns = converted((USER, "a"), (ASSISTANT, "b"))
    assert split_prefill(turns) == (turns[:1], "b")
    for whole in (converted((USER, "a")), converted((USER, "a"), (ASSISTANT, [CALL]))):
        assert split_prefill(whole) == (whole, "")


@pytest.mark.parametrize(
    ("thinking", "variables", "shown"),
    [
        (None, {}, True),
        ({"type": "enabled", "budget_tokens": 1024}, {"enable_thinking": True}, True),
        ({"type": "adaptive"}, {"enable_thinking": True}, True),
        ({"type": "adaptive", "display": "omitted"}, {"enable_thinking": True}, False),
        ({"type": "disabled"}, {"enable_thinking": False}, False),
    ],
)
def test_thinking(thinking: Any, variables: dict[str, bool], shown: bool) -> None:
    body = {"max_tokens": 1, "messages": [{"role": USER, "content": "x"}], "thinking": thinking}
    request = msgspec.convert(body, MessagesRequest)
    assert request.prompt().variables == variables
    assert request.shows_thinking is shown

"""A model whose template opens its reasoning, over Anthropic's and Ollama's APIs.

Its weights are random, so it never stops to think.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import ollama
import pytest

import tiny_models
from server_process import ServerProcess, serving

THINKS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:{{ '<think>\\n' }}"
)
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    path = tmp_path_factory.mktemp("model") / "thinker.gguf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_models, "CHATML", THINKS)
        tiny_models.write_tiny_model(path)
    with serving("-m", path, "-c", "256") as process:
        yield process


def test_anthropic_s_thinking_blocks(server: ServerProcess) -> None:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        ask: dict[str, Any] = {"model": "thinker", "max_tokens": 8, "messages": HELLO}
        ask["extra_body"] = {"temperature": 0}
        (block,) = client.messages.create(**ask).content
        assert block.type == "thinking" and block.thinking
        with client.messages.stream(**ask) as stream:
            (streamed,) = stream.get_final_message().content
        assert streamed.type == "thinking" and streamed.thinking
        assert client.messages.create(**ask, thinking={"type": "disabled"}).content == []
        begun = [*HELLO, {"role": "assistant", "content": "Well,"}]
        (block,) = client.messages.create(**ask | {"messages": begun}).content
        assert block.type == "text"  # the answer has begun, so the thoughts are over


def test_ollama_s_thinking_field(server: ServerProcess) -> None:
    with ollama.Client(server.url) as client:
        options = {"num_predict": 8, "temperature": 0}
        message = client.chat("thinker", HELLO, think=True, options=options).message
        assert message.thinking and not message.content
        message = client.chat("thinker", HELLO, think=False, options=options).message
        assert message.thinking is None and not message.content
        assert client.generate("thinker", "Hello", options=options).thinking
        assert client.show("thinker").capabilities == ["completion", "tools", "thinking"]

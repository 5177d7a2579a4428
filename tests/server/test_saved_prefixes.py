"""A system prompt that is computed before a restart is not computed again after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from server_process import ServerProcess
from tiny_models import TinyModel, write_tiny_model

SYSTEM = "You are a patient gardener. " + "Roses want sun, ferns want shade. " * 12


def ask(http: httpx.Client, question: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    reply = http.post(
        "/v1/chat/completions",
        json={"messages": messages, "max_tokens": 12, "temperature": 0, "ignore_eos": True},
    )
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def cached(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def text(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def answers(model: Path, folder: Path, *questions: str) -> tuple[list[dict[str, Any]], str]:
    """What a server answers from its start to its end, and what it logged."""
    server = ServerProcess("-m", model, "-c", "2048", "--save-prefixes", folder)
    with server.client() as http:
        got = [ask(http, question) for question in questions]
    status, log = server.stop()
    assert status == 0 and "Traceback" not in log, log
    return got, log


def test_a_system_prompt_survives_a_restart(smollm2: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prefixes"
    (first, second), log = answers(smollm2, folder, "What do ferns want?", "And roses?")
    assert cached(first) == 0 and "saved" in log
    (again,), log = answers(smollm2, folder, "And roses?")
    assert cached(again) >= cached(second) > 100
    assert text(again) == text(second) and "restored" in log
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny.gguf", TinyModel(context_length=2048))


def test_prefixes_of_other_weights_are_not_used(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prefixes"
    answers(tiny, folder, "Hello")
    other = write_tiny_model(tiny, TinyModel(context_length=2048, seed=1))
    (answer,), log = answers(other, folder, "Hello")
    assert cached(answer) == 0 and "restored 0 tokens" in log
    assert len(list(folder.iterdir())) == 2  # each has its own


def test_a_damaged_file_is_a_warning(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prefixes"
    (healthy,), _ = answers(tiny, folder, "Hello")
    (file,) = folder.iterdir()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    (answer,), log = answers(tiny, folder, "Hello")
    assert cached(answer) == 0 and text(answer) == text(healthy)
    assert log.count("WARNING") == 1 and "damaged" in log


def test_a_folder_that_cannot_be_written_is_a_warning(tiny: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "a-file"
    blocked.touch()
    _, log = answers(tiny, blocked, "Hello")
    assert log.count("WARNING") == 2 and "cannot be saved" in log  # neither read nor written


def test_nothing_is_saved_unless_asked_for(tiny: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    server = ServerProcess("-m", tiny, environment={"XDG_CACHE_HOME": str(home)})
    with server.client() as http:
        ask(http, "Hello")
    assert server.stop()[0] == 0
    assert not list(home.rglob("*.prefixes"))

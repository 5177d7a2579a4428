"""The real bundle, by the real adb, on a phone with an emulated processor and nothing of the host.

Arithmetic of other processors rounds differently, so answers are compared where it cannot matter:
the same tokens only of a model in F32, otherwise those that are far ahead of the second.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from command_line import status_of
from deploy.bundles import real_bundle
from deploy.fake_phone.phone import (
    FakePhone,
    PhoneSettings,
    adb_server,
    connect,
    require_phone_tools,
)
from powerserve.deploy.installation import Bundle
from powerserve.deploy.jobs import Program, job_folder, run_program
from powerserve.deploy.layout import WORKSPACE
from powerserve.deploy.selection import choose_device
from powerserve.storage.progress import SILENT
from tiny_models import TinyModel, write_tiny_model

pytestmark = pytest.mark.timeout(1800)  # the first use of the bundle compiles ggml three times

Capture = pytest.CaptureFixture[str]
QUESTION = "The capital of France is"
TEXT = (
    "The harbour lay still in the early light. Two boats had come in during the night, and their "
    "crews were asleep on the coiled ropes."
)
CLEAR_MARGIN = 1.0  # nats between the first and the second token


@dataclass(frozen=True)
class Emulated:
    """A phone that this module's tests share, and the variables that lead to it."""

    phone: FakePhone
    bundle: Path
    variables: dict[str, str]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulated]:
    require_phone_tools()
    bundle = real_bundle()
    folder = tmp_path_factory.mktemp("emulated")
    with adb_server(folder) as variables:
        phone = FakePhone(folder / "phone", PhoneSettings(cpu="cortex-a76"))
        connect(variables, phone)
        yield Emulated(phone, bundle, variables | {"XDG_CACHE_HOME": str(folder / "cache")})
        phone.stop()


@pytest.fixture(autouse=True)
def led_there(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANDROID_ADB_SERVER_PORT", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, emulated.variables[name])
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)


def deploy(action: str, emulated: Emulated, *words: str | Path, flags: str = "") -> int:
    one_thread = f"--flags=-t 1 {flags}"  # emulated threads wait for each other by spinning
    return status_of("deploy", action, *words, "--bundle", emulated.bundle, one_thread)


def answer(output: str) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(output)
    return described


def test_a_model_in_f32_answers_as_on_the_host(
    emulated: Emulated, tmp_path: Path, capfd: Capture
) -> None:
    tiny = write_tiny_model(tmp_path / "tiny.gguf", TinyModel(seed=4))
    words = ("-p", "it's “$HOME”\n", "-n", "12")
    assert deploy("run", emulated, tiny, *words, flags="--temp 0 --json") == 0
    there = answer(capfd.readouterr().out)
    assert status_of("run", "-m", tiny, *words, "--temp", "0", "--json") == 0
    assert there["token_ids"] == answer(capfd.readouterr().out)["token_ids"]
    measured = ("-p", TEXT, "-b", "1")
    assert run_there(emulated, "perplexity", "-m", WORKSPACE / tiny.stem, *measured) == 0
    found = mean_nll(capfd.readouterr().out)
    assert status_of("perplexity", "-m", tiny, *measured) == 0
    assert found == pytest.approx(mean_nll(capfd.readouterr().out), abs=0.02)


def test_smollm2_chooses_the_tokens_that_it_chooses_on_the_host(
    emulated: Emulated, smollm2: Path, capfd: Capture
) -> None:
    words = ("-p", QUESTION, "-n", "3")
    assert deploy("run", emulated, smollm2, *words, flags="--temp 0 --json --logprobs 2") == 0
    there = answer(capfd.readouterr().out)
    assert there["text"].startswith(" Paris")
    assert status_of("run", "-m", smollm2, *words, "--temp", "0", "--json", "--logprobs", "2") == 0
    check_clear_tokens(there, answer(capfd.readouterr().out))


def check_clear_tokens(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Up to the first token that the second is close to, all must be equal."""
    num_clear = 0
    for index, place in enumerate(expected["logprobs"]):
        best, second = (each["logprob"] for each in place["top"][:2])
        if best - second < CLEAR_MARGIN:
            break
        assert found["token_ids"][index] == expected["token_ids"][index]
        num_clear += 1
    assert num_clear > 0


def run_there(emulated: Emulated, *words: str | Path) -> int:
    """Run the installed program with these words."""
    device = choose_device()
    program = Program(Bundle.open(emulated.bundle, SILENT).program)
    with job_folder(device) as folder:
        return run_program(folder, program, [*map(str, words), "-t", "1"])


def mean_nll(output: str) -> float:
    """In nats, from the last of the lines `ppl <tokens>: <value>`."""
    return math.log(float(re.findall(r"ppl \d+: (\S+)", output)[-1]))


def test_a_chat_streams_from_its_server(emulated: Emulated, tmp_path: Path, capfd: Capture) -> None:
    tiny = write_tiny_model(tmp_path / "chatty.gguf", TinyModel(context_length=256))
    assert deploy("serve", emulated, tiny, "--port", "0") == 0
    url = re.search(r"http://\S+", capfd.readouterr().out)
    assert url
    with openai.OpenAI(base_url=f"{url[0]}/v1", api_key="none", max_retries=0) as client:
        messages = [{"role": "user", "content": "Hello!"}]
        chunks = client.chat.completions.create(
            model="chatty",
            messages=messages,  # type: ignore[arg-type]
            max_tokens=8,
            stream=True,
        )
        texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert len([text for text in texts if text]) > 1
    assert status_of("deploy", "stop") == 0
    assert "stopped" in capfd.readouterr().out


def test_mistakes_on_the_phone_have_their_sentence_and_status(
    emulated: Emulated, tmp_path: Path, capfd: Capture
) -> None:
    tiny = write_tiny_model(tmp_path / "tiny.gguf", TinyModel(seed=4))
    assert deploy("run", emulated, tiny, "-p", "x", flags="--grammar /no/such/file") == 2
    told = capfd.readouterr().err.splitlines()[-1]
    assert told.startswith("powerserve run: error: ")

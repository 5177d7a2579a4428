"""`powerserve run` with the real built-in model and with tiny ones."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from command_line import ORIGINAL_RUN, PROGRAM, program, status_of, type_in
from powerserve.backend.ggml import locate
from powerserve.backend.ggml.backend import GgmlBackend, GgmlOptions
from powerserve.backend.ggml.kernels.choice import KernelChoice
from powerserve.cli.build_offer import offer_native_build
from powerserve.cli.terminal import visible
from tiny_models import write_tiny_model

Capture = pytest.CaptureFixture[str]
QUESTION = "The capital of France is"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny.gguf")


def test_the_real_model_knows_paris(smollm2: Path) -> None:
    done = program("run", "-m", smollm2, "-p", QUESTION, "-n", "6", "--temp", "0")
    assert done.returncode == 0
    assert done.stdout.startswith(b" Paris")
    assert b"[INFO ] prefill speed (5 tokens): " in done.stderr
    assert b"[INFO ] decode speed (5 tokens): " in done.stderr


def test_chat_puts_the_prompt_into_the_template(smollm2: Path) -> None:
    flags = ("--chat", "-n", "16", "--temp", "0", "--json")
    done = program("run", "-m", smollm2, *flags, stdin=b"What is gravity?")
    answer = json.loads(done.stdout)
    assert answer["text"].startswith("Gravity is ")
    assert answer["prompt_tokens"] > 30  # the template's system message


def test_a_system_message_counts(tiny: Path, capsys: Capture) -> None:
    lengths = []
    for flags in (("--chat",), ("--system", "Be brief.")):
        assert status_of("run", "-m", tiny, "-p", "x", "-n", "1", "--json", *flags) == 0
        lengths.append(json.loads(capsys.readouterr().out)["prompt_tokens"])
    assert lengths[0] < lengths[1]


def test_a_known_format_replaces_the_models_own(tiny: Path, capsys: Capture) -> None:
    def num_prompt_tokens(*flags: str) -> int:
        assert status_of("run", "-m", tiny, *flags, "-n", "1", "--json") == 0
        return int(json.loads(capsys.readouterr().out)["prompt_tokens"])

    by_hand = num_prompt_tokens("-p", "USER: x\nASSISTANT:") + 1  # BOS
    assert num_prompt_tokens("-p", "x", "--chat-template", "vicuna") == by_hand
    assert num_prompt_tokens("-p", "x", "--chat") != by_hand
    assert status_of("run", "-m", tiny, "-p", "x", "--chat-template", "nonsense") == 2
    assert "no chat template named “nonsense”; known are: " in capsys.readouterr().err


def test_line_ends_of_a_prompt_file_stay(tiny: Path, tmp_path: Path, capsys: Capture) -> None:
    lengths = []
    for content in (b"a\r\nb", b"a\nb"):
        (tmp_path / "prompt").write_bytes(content)
        flags = ("-f", tmp_path / "prompt", "-n", "1", "--json")
        assert status_of("run", "-m", tiny, *flags) == 0
        lengths.append(json.loads(capsys.readouterr().out)["prompt_tokens"])
    assert lengths[0] > lengths[1]


def test_n_is_exact_and_zero_means_nothing(tiny: Path, capsys: Capture) -> None:
    for count in (0, 1, 7):
        flags = ("-p", "x", "-n", str(count), "--ignore-eos", "--json")
        assert status_of("run", "-m", tiny, *flags) == 0
        answer = json.loads(capsys.readouterr().out)
        assert len(answer["token_ids"]) == answer["completion_tokens"] == count
        assert answer["finish_reason"] == "length"
    assert status_of("run", "-m", tiny, "-p", "x", "-n", "0") == 0
    printed = capsys.readouterr()
    assert printed.out == "\n"
    assert "speed" not in printed.err


def test_json_is_one_object_and_nothing_else(smollm2: Path) -> None:
    flags = ("-n", "8", "--temp", "0", "--stop", "aris", "--json", "-q")
    done = program("run", "-m", smollm2, "-p", QUESTION, *flags)
    assert done.stderr == b""
    answer = json.loads(done.stdout)
    assert (answer["text"], answer["finish_reason"]) == (" P", "stop")
    assert "logprobs" not in answer
    assert answer["prompt_tokens"] == 5
    assert answer["prefill_s"] > 0


def test_logprobs_come_when_asked_for(tiny: Path, capsys: Capture) -> None:
    flags = ("-p", "x", "-n", "3", "--temp", "0", "--ignore-eos", "--json", "--logprobs", "2")
    assert status_of("run", "-m", tiny, *flags) == 0
    answer = json.loads(capsys.readouterr().out)
    chosen = answer["logprobs"]
    assert [each["token_id"] for each in chosen] == answer["token_ids"]
    for each in chosen:
        assert [list(top) for top in each["top"]] == [["token_id", "text", "logprob"]] * 2
        assert each["logprob"] == max(top["logprob"] for top in each["top"]) < 0


def test_a_seed_repeats_and_minus_one_does_not(tiny: Path, capsys: Capture) -> None:
    def text(seed: int) -> str:
        flags = ("-p", "x", "-n", "24", "--temp", "2", "--ignore-eos", "-q")
        assert status_of("run", "-m", tiny, *flags, "--seed", str(seed)) == 0
        return capsys.readouterr().out

    assert text(5) == text(5) != text(6)
    assert text(-1) != text(-1)


def test_the_prompt_may_come_from_a_file_or_a_pipe(
    tiny: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("-m", tiny, "-n", "5", "--temp", "0", "-q")
    prompt = "hello world, 日本\n"
    assert status_of("run", *flags, "-p", prompt) == 0
    expected = capsys.readouterr().out
    file = tiny.with_name("prompt.txt")
    file.write_text(prompt, encoding="utf-8")
    assert status_of("run", *flags, "-f", file) == 0
    assert capsys.readouterr().out == expected
    type_in(monkeypatch, prompt)
    assert status_of("run", *flags) == 0
    assert capsys.readouterr().out == expected


def test_the_reference_backend_gives_the_same_text(tiny: Path, capsys: Capture) -> None:
    texts = []
    for backend in ("ggml", "reference"):
        flags = ("-p", "hello", "-n", "6", "--temp", "0", "-q", "--backend", backend)
        assert status_of("run", "-m", tiny, *flags) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_a_reader_that_leaves_is_no_error(tiny: Path) -> None:
    command = [*PROGRAM, "run", "-m", str(tiny), "-p", "x", "-n", "400", "--ignore-eos", "-q"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None and running.stderr is not None
    running.stdout.read(1)
    running.stdout.close()
    assert running.stderr.read() == b""
    running.stderr.close()
    assert running.wait(60) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence(tiny: Path) -> None:
    command = [*PROGRAM, "run", "-m", str(tiny), "-p", "x", "-n", "3", "-q"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(b"powerserve run: error: the output cannot be written")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_ends_a_long_prefill_at_once(smollm2: Path) -> None:
    prompt = "A quick brown fox jumps over one lazy dog. " * 200
    flags = ("-m", str(smollm2), "-p", prompt, "-n", "3", "-b", "2048", "-t", "1")
    running = subprocess.Popen(
        [*ORIGINAL_RUN, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert running.stdout is not None
    while b"batch_size" not in running.stdout.readline():
        pass
    running.stdout.read(len(prompt))  # the echo; what follows is one long step
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    rest, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert b"prefill time" not in rest  # the step was not computed to its end
    assert errors == b""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[2J\x07", "␛[2J␇"),
        ("\x9b31m\x7f\0", "\N{REPLACEMENT CHARACTER}31m␡␀"),
        ("two\r\nlines", "two\nlines"),
        ("日本 é", "日本 é"),
    ],
)
def test_control_characters_cannot_reach_a_terminal(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.fixture
def prebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GgmlBackend:
    """A backend on the wheel's library, on a machine with a better CPU and a compiler."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(locate.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr("powerserve.backend.ggml.cpu.cpu_flags", lambda: {"avx2", "avx512f"})
    monkeypatch.setattr("powerserve.backend.ggml.native_build.compiler_in", lambda _: "c++ 99")
    backend = object.__new__(GgmlBackend)
    library = SimpleNamespace(folder=locate.wheel_folder(), features=lambda: ["avx2"])
    monkeypatch.setattr(backend, "library", library, raising=False)
    monkeypatch.setattr(backend, "options", GgmlOptions(), raising=False)
    monkeypatch.setattr(backend, "kernels", object())
    return backend


def test_a_native_build_is_offered_once(prebuilt: GgmlBackend, capsys: Capture) -> None:
    offer_native_build(prebuilt)
    told = capsys.readouterr().err
    assert "avx512" in told and "`powerserve build-native`" in told and told.count("\n") == 1
    offer_native_build(prebuilt)
    assert capsys.readouterr().err == ""


def test_no_offer_where_a_build_would_not_help(
    prebuilt: GgmlBackend, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("powerserve.backend.ggml.cpu.cpu_flags", lambda: {"avx2"})
    offer_native_build(prebuilt)
    monkeypatch.setattr("powerserve.backend.ggml.cpu.cpu_flags", lambda: {"avx512f"})
    monkeypatch.setenv(locate.ENVIRONMENT_VARIABLE, "/somewhere")
    monkeypatch.setattr(prebuilt, "kernels", None)
    offer_native_build(prebuilt)
    assert capsys.readouterr().err == ""


def test_kernels_that_are_not_there_are_offered(
    prebuilt: GgmlBackend, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("powerserve.backend.ggml.cpu.cpu_flags", lambda: {"avx2"})
    monkeypatch.setattr(prebuilt, "kernels", None)
    monkeypatch.setattr(prebuilt, "options", GgmlOptions(kernels=KernelChoice.GGML))
    offer_native_build(prebuilt)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(prebuilt, "options", GgmlOptions())
    offer_native_build(prebuilt)
    assert "own kernels are not compiled yet; `powerserve build-native`" in capsys.readouterr().err

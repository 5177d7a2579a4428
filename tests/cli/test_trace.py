"""--trace as a user meets it: what the file holds, whichever way the program ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from command_line import PROGRAM, status_of
from model_pairs import write_pair
from server_process import serving
from tiny_models import TinyModel, write_tiny_model

Event = dict[str, Any]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel())


def spans_of(trace: Path) -> list[Event]:
    return [event for event in json.loads(trace.read_text()) if event["ph"] == "X"]


def names_in(trace: Path) -> Counter[str]:
    return Counter(span["name"] for span in spans_of(trace))


def generated_in(trace: Path) -> int:
    events = json.loads(trace.read_text())
    counts = [e["args"]["total"] for e in events if e["name"] == "#generated-token"]
    assert counts == sorted(counts)
    return int(counts[-1])


def contains(outer: Event, inner: Event) -> bool:
    return bool(
        outer["ts"] <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]
    )


def test_run_shows_every_part_of_every_step(tiny: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    prompt = ("-p", "a b c d e f g h", "-b", "4", "--spec", "off", "--ignore-eos")
    assert status_of("run", "-m", tiny, "-n", "6", "-q", *prompt, "--trace", trace) == 0
    names = names_in(trace)
    steps = names["step"]
    assert names["schedule"] == names["sample"] == names["backend"] == steps
    assert names["prefill"] > 1 and names["decode"] == 5
    assert names["prefill"] + names["decode"] == steps
    assert generated_in(trace) == 6
    spans = spans_of(trace)
    outer = [span for span in spans if span["name"] == "step"]
    for span in spans:
        assert any(contains(step, span) for step in outer)


def test_drafts_and_what_verifies_them_are_told_apart(tmp_path: Path) -> None:
    pair = write_pair(tmp_path)
    trace = tmp_path / "trace.json"
    models = ("-m", pair.target, "--draft-model", pair.draft)
    flags = ("-p", "a b", "-n", "8", "--temp", "0", "--ignore-eos", "--spec", "tree", "-q")
    assert status_of("run", *models, *flags, "--trace", trace) == 0
    spans = spans_of(trace)
    assert names_in(trace)["verify"] >= 1
    drafts = [span for span in spans if span["name"] == "draft"]
    verified = [span for span in spans if span["name"] == "verify"]
    backends = [span for span in spans if span["name"] == "backend"]
    assert sum(any(contains(draft, each) for draft in drafts) for each in backends) >= 2
    for each in verified:
        (inner,) = [backend for backend in backends if contains(each, backend)]
        assert inner["args"]["tokens"] > 1  # a tree


def test_bench_is_traced(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.json"
    flags = ("-p", "8", "-n", "4", "-r", "1", "-t", "1")
    assert status_of("bench", "-m", tiny, *flags, "--trace", trace) == 0
    assert names_in(trace)["decode"] >= 8  # warming up, and the measurement


def test_the_server_names_the_thread_of_each_model(tiny: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    with serving("-m", tiny, "--trace", trace) as server, server.client() as client:
        body = {"prompt": "a b", "max_tokens": 5, "ignore_eos": True}
        assert client.post("/v1/completions", json=body).status_code == 200
    assert generated_in(trace) == 5
    events = json.loads(trace.read_text())
    threads = [each["args"]["name"] for each in events if each["name"] == "thread_name"]
    assert threads == ["engine tiny"]


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_leaves_a_complete_trace(tiny: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    flags = ("-m", tiny, "-p", "a", "-n", "400", "--ignore-eos", "--spec", "off")
    process = subprocess.Popen(
        [*PROGRAM, "run", *flags, "--trace", str(trace)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    process.stdout.read(1)  # the answer has begun
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert 1 <= generated_in(trace) <= 400


def test_the_model_is_not_overwritten(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tiny.read_bytes()
    assert status_of("run", "-m", tiny, "-p", "a", "-n", "1", "--trace", tiny) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert tiny.read_bytes() == before


def test_a_server_overwrites_no_model_either(tiny: Path, tmp_path: Path) -> None:
    """Not even one that it would load later."""
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny.read_bytes())
    assert status_of("serve", "-d", tmp_path, "--port", "0", "--trace", other) == 2
    assert other.read_bytes() == tiny.read_bytes()


def test_a_folder_that_is_not_there(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("run", "-m", tiny, "-p", "a", "--trace", tmp_path / "no/trace.json") == 2
    assert "name a file in a folder that exists" in capsys.readouterr().err

"""`powerserve bench-server`: what is asked, measured and printed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from chat_stub import ChatStub, StubAnswer, chat_stub, says
from command_line import PROGRAM, status_of
from server_process import wait_until

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def stub() -> Iterator[ChatStub]:
    with chat_stub() as running:
        yield running


def rows_of(table: str) -> dict[str, list[str]]:
    """The cells of each row by its name."""
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: rest for name, *rest in cells}


def test_the_table(stub: ChatStub, capsys: Capture) -> None:
    flags = ("-n", "6", "-c", "2", "-p", "11", "--max-tokens", "2", "--seed", "5", "-m", "large")
    assert status_of("bench-server", stub.url, *flags) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("2 clients, 6 requests in a round; questions of 11 words, answers of")
    rows = rows_of(shown)
    assert rows[""] == [stub.url]
    assert rows["requests answered"] == ["6"]
    assert rows["prompt tokens per request"] == ["7.00"]
    assert rows["generated tokens per request"] == ["2.00"]
    p50, p99, slowest = (float(rows[f"first token, {name} (ms)"][0].replace(",", ""))
                         for name in ("p50", "p99", "max"))  # fmt: skip
    assert 0 < p50 <= p99 <= slowest
    assert len(stub.bodies) == 1 + 2 + 6  # is it there, the warm-up, the measurement
    assert {body["model"] for body in stub.bodies} == {"large"}
    body = stub.bodies[-1]
    assert (body["max_tokens"], body["ignore_eos"], body["stream"]) == (2, True, True)
    assert len(body["messages"][0]["content"].split()) == 11


def test_json_has_every_request(stub: ChatStub, capsys: Capture) -> None:
    flags = ("-n", "3", "--rate", "100", "--rounds", "2", "--may-end", "--json", "--warm-up", "0")
    assert status_of("bench-server", stub.url, *flags) == 0
    report = json.loads(capsys.readouterr().out)
    (server,) = report["servers"]
    assert report["plan"]["rate"] == 100 and report["ratios"] is None
    assert [len(run["requests"]) for run in server["rounds"]] == [3, 3]
    assert server["summary"]["num_answered"] == 6
    for run in server["rounds"]:
        for request in run["requests"]:
            times = [0, request["began_s"], *request["arrivals_s"], request["ended_s"]]
            assert times == sorted(times) and times[-1] <= run["duration_s"]
    assert "ignore_eos" not in stub.bodies[-1]


def test_two_servers_take_turns(stub: ChatStub, capsys: Capture) -> None:
    with chat_stub() as other:
        other.answer = says("a", "b", "c", "d")
        flags = ("--compare", other.url, "--compare-model", "theirs", "--rounds", "2", "-n", "4")
        assert status_of("bench-server", stub.url, *flags, "--shared-prefix", "9") == 0
        ours, theirs = ({str(body["messages"]) for body in each.bodies} for each in (stub, other))
        assert ours == theirs and len(ours) == 1 + 2 * (2 + 4)
        assert {body["model"] for body in other.bodies} == {"theirs"}
    rows = rows_of(capsys.readouterr().out)
    assert rows[""] == [stub.url, other.url, "ratio"]
    assert rows["requests answered"] == ["8", "8", ""]
    assert rows["generated tokens per request"] == ["2.00", "4.00", "0.50"]
    assert rows["of them cached"][-1] == "–"


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot(stub: ChatStub, tmp_path: Path, suffix: str) -> None:
    plot = tmp_path / f"load.{suffix}"
    assert status_of("bench-server", stub.url, "-n", "3", "--plot", plot) == 0
    beginning = plot.read_bytes()[:200]
    assert b"PNG" in beginning if suffix == "png" else b"<?xml" in beginning


def test_errors_are_counted(stub: ChatStub, capsys: Capture) -> None:
    stub.queue = [says("a"), says("a"), StubAnswer(status=503, error="full")]  # the first: a check
    assert status_of("bench-server", stub.url, *("-n", "3", "-c", "1", "--warm-up", "0")) == 0
    shown = capsys.readouterr().out
    assert rows_of(shown)["requests answered"] == ["2"]
    assert f"- {stub.url}: 1 × status 503" in shown


def test_an_interrupt_shows_what_there_is(stub: ChatStub) -> None:
    command = [*PROGRAM, "bench-server", stub.url, "--duration", "600", "-c", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(stub.bodies) > 8)
    process.send_signal(signal.SIGINT)
    shown, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert int(rows_of(shown)["requests answered"][0]) > 0
    assert "interrupted" in errors and "Traceback" not in errors


def test_the_key_comes_from_the_environment(
    stub: ChatStub, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    stub.key = "secret"
    monkeypatch.delenv("POWERSERVE_API_KEY", raising=False)
    assert status_of("bench-server", stub.url, "-n", "1") == 2
    assert "status 401: a valid API key is needed" in capsys.readouterr().err
    monkeypatch.setitem(os.environ, "POWERSERVE_API_KEY", "secret")
    assert status_of("bench-server", stub.url, "-n", "1") == 0


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("localhost",), "is not the URL of a server"),
        (("http://127.0.0.1:1",), "connection refused"),
        (("http://127.0.0.1:1", "--plot", "x.docx"), "does not end in a format for plots"),
        (("http://127.0.0.1:1", "-c", "0"), "not a whole number of at least 1"),
        (("http://127.0.0.1:1", "--rate", "-1"), "not a positive number of requests"),
        (("http://127.0.0.1:1", "--rate", "1", "-c", "2"), "not allowed with"),
        (("http://127.0.0.1:1", "-n", "1", "--duration", "2"), "not allowed with"),
        (("http://127.0.0.1:1", "--shared-prefix", "1", "--distinct-prefix", "2"), "not allowed"),
    ],
)
def test_mistakes_are_explained(capsys: Capture, flags: tuple[str, ...], complaint: str) -> None:
    assert status_of("bench-server", *flags) == 2
    assert complaint in capsys.readouterr().err

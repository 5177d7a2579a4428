"""Trace files: what is in them, whatever happens to the process that writes them."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from powerserve.core.errors import UsageError
from powerserve.core.tracing import NO_TRACER, TraceFile, tracing


def events_of(path: Path, phase: str) -> list[dict[str, Any]]:
    return [event for event in json.loads(path.read_text()) if event["ph"] == phase]


def test_spans_nest_and_carry_details(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with tracing(path) as tracer, tracer.span("outer"):
        with tracer.span("first", tokens=3):
            pass
        with tracer.span("second"):
            pass
    first, second, outer = events_of(path, "X")
    assert [each["name"] for each in (first, second, outer)] == ["first", "second", "outer"]
    assert first["args"] == {"tokens": 3}
    assert outer["ts"] <= first["ts"]
    assert first["ts"] + first["dur"] <= second["ts"]
    assert second["ts"] + second["dur"] <= outer["ts"] + outer["dur"]


def test_counters_add_up(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with tracing(path) as tracer:
        for amount in (1, 3, 0):
            tracer.add("tokens", amount)
    assert [event["args"]["total"] for event in events_of(path, "C")] == [1, 4, 4]


def test_each_thread_has_a_track_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with tracing(path) as tracer:

        def work() -> None:
            for _ in range(500):
                with tracer.span("work"):
                    pass

        threads = [threading.Thread(target=work, name=f"engine {n}") for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    names = {
        event["tid"]: event["args"]["name"]
        for event in events_of(path, "M")
        if event["name"] == "thread_name"
    }
    spans = events_of(path, "X")
    assert len(spans) == 2000
    assert {names[span["tid"]] for span in spans} <= {f"engine {n}" for n in range(4)}


def test_an_interrupted_trace_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with pytest.raises(KeyboardInterrupt), tracing(path) as tracer, tracer.span("step"):
        raise KeyboardInterrupt
    assert [event["name"] for event in events_of(path, "X")] == ["step"]


def test_a_trace_without_its_end_is_readable_up_to_there(tmp_path: Path) -> None:
    """Viewers accept an array that is not closed; this is what a killed process leaves."""
    trace = TraceFile(tmp_path / "trace.json")
    with trace.span("step"):
        pass
    trace._file.flush()
    assert len(json.loads((tmp_path / "trace.json").read_text() + "]")) == 3
    trace.close()


def test_a_full_disk_is_told_at_the_end() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    trace = TraceFile(full)
    for _ in range(1000):  # more than is buffered
        with trace.span("step"):
            pass
    with pytest.raises(UsageError, match="the trace /dev/full is incomplete: No space left"):
        trace.close()


def test_a_file_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written: Is a directory"):
        TraceFile(tmp_path)


def test_off_is_one_object_that_does_nothing() -> None:
    with tracing(None) as tracer:
        assert tracer is NO_TRACER
        assert tracer.span("a") is tracer.span("b", tokens=1)


def test_nothing_but_a_trace_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"GGUF", b"[]", b'[\n{"name":"Ann"}]', b"\0"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="is no trace"):
            TraceFile(path)
        assert path.read_bytes() == content
    path.write_bytes(b"")
    for name in ("first", "second"):
        with tracing(path) as tracer, tracer.span(name):
            pass
        assert [span["name"] for span in events_of(path, "X")] == [name]


def test_a_trace_that_is_full_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "trace.json"
    trace = TraceFile(path, max_bytes=1000)
    for _ in range(1000):
        trace.add("tokens", 1)
    trace.close()
    assert 1000 <= path.stat().st_size < 1200
    totals = [event["args"]["total"] for event in events_of(path, "C")]
    assert totals == list(range(1, len(totals) + 1))
    assert [record.message.split(" is ")[1][:4] for record in caplog.records] == ["full"]

"""`powerserve bench` on a tiny model: what is measured and printed, not how fast it is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from powerserve.backend.ggml.backend import GgmlBackend
from powerserve.cli.main import main
from tiny_models import TinyModel, write_tiny_model

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel()))


def bench(model: str, *flags: str) -> int:
    return main(["bench", "-m", model, "-t", "1", *flags])


def bench_json(capsys: Capture, model: str, *flags: str) -> dict[str, Any]:
    assert bench(model, "-o", "json", *flags) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_json_holds_every_sample(tiny: str, capsys: Capture) -> None:
    report = bench_json(capsys, tiny, "-p", "40", "-n", "6", "-r", "3", "-b", "16")
    prefill, decode = report["tests"]
    assert (prefill["name"], prefill["num_tokens"]) == ("pp40", 40)
    assert [len(sample["steps_s"]) for sample in prefill["samples"]] == [3, 3, 3]  # 16 + 16 + 8
    assert (decode["name"], decode["num_tokens"]) == ("tg6", 6)
    assert [len(sample["steps_s"]) for sample in decode["samples"]] == [6, 6, 6]
    walls = [sum(sample["steps_s"]) for sample in decode["samples"]]
    rates = sorted(6 / wall for wall in walls)
    assert decode["tokens_per_s"]["median"] == pytest.approx(rates[1])
    assert decode["tokens_per_s"]["mean"] == pytest.approx(sum(rates) / 3)
    assert report["batch_curve"] == [] and "overhead" not in report


def test_json_says_what_ran(tiny: str, capsys: Capture) -> None:
    report = bench_json(capsys, tiny, "-p", "8", "-n", "0", "-r", "1", "--kv-type", "f32")
    assert [test["name"] for test in report["tests"]] == ["pp8"]
    assert report["settings"]["threads"] == 1
    assert report["settings"]["kv_type"] == "F32"
    assert report["model"]["architecture"] == "llama"
    assert report["kernels"]["backend"] == "ggml" and report["kernels"]["version"]
    assert report["kernels"]["origin"] in ("wheel", "native", "environment")
    assert report["machine"]["num_cpus"] >= 1


def test_the_header_names_our_own_kernels(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    flags = ("-p", "8", "-n", "0", "-r", "1")
    monkeypatch.setattr(GgmlBackend, "kernels", None)
    assert bench(tiny, *flags) == 0
    assert "own kernels" not in capsys.readouterr().out
    kernels = SimpleNamespace(
        path="kernels.so",
        instruction_set="avx9",
        instruction_sets=["avx9", "avx8"],
        can_pack=lambda dtype, shape: False,
    )
    monkeypatch.setattr(GgmlBackend, "kernels", kernels)
    assert bench(tiny, *flags) == 0
    (line,) = (each for each in capsys.readouterr().out.splitlines() if "- backend:" in each)
    assert line.endswith("; own kernels: avx9 avx8")


def test_the_curve_is_relative_to_one_token(tiny: str, capsys: Capture) -> None:
    report = bench_json(capsys, tiny, *("-p", "0", "-n", "0", "-r", "2", "--batch-curve", "8,2"))
    assert report["tests"] == []
    assert [point["batch_size"] for point in report["batch_curve"]] == [1, 2, 8]
    assert report["batch_curve"][0]["relative_step"] == 1.0
    for point in report["batch_curve"]:
        (steps,) = {len(sample["steps_s"]) for sample in point["samples"]}
        assert point["num_tokens"] == point["batch_size"] * steps


def test_the_depth_is_not_part_of_the_measurement(tiny: str, capsys: Capture) -> None:
    flags = ("-p", "16", "-n", "4", "-r", "2", "-b", "16", "--depth", "100")
    prefill, decode = bench_json(capsys, tiny, *flags)["tests"]
    assert (prefill["name"], decode["name"]) == ("pp16@100", "tg4@100")
    assert [len(sample["steps_s"]) for sample in prefill["samples"]] == [1, 1]
    assert [len(sample["steps_s"]) for sample in decode["samples"]] == [4, 4]


def test_overhead_takes_a_step_apart(tiny: str, capsys: Capture) -> None:
    overhead = bench_json(capsys, tiny, "-p", "0", "-n", "1", "-r", "1", "--overhead")["overhead"]
    assert set(overhead["median_s"]) == {"total", "compute", "sampling", "python"}
    assert len(overhead["steps"]) == 200
    for step in overhead["steps"]:
        assert step["compute_s"] > 0 and step["sampling_s"] > 0
        assert step["compute_s"] + step["sampling_s"] < step["total_s"]


def test_markdown_has_a_table_per_question(tiny: str, capsys: Capture) -> None:
    assert bench(tiny, "-p", "8", "-n", "2", "-r", "1", "--batch-curve", "1,2", "--overhead") == 0
    conditions, *tables = capsys.readouterr().out.strip().split("\n\n")
    names = [line.split(":")[0] for line in conditions.splitlines()]
    assert names == ["- machine", "- backend", "- model", "- settings"]
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    speeds, curve, overhead = (table.splitlines() for table in tables)
    assert [row.split("|")[1].strip() for row in speeds[2:]] == ["pp8", "tg2"]
    assert curve[0] == "| tokens in a step | 1 | 2 |"
    assert [row.split()[1] for row in overhead[2:]] == ["total", "compute", "sampling", "python"]


def test_the_context_grows_to_what_is_measured(tmp_path: Path, capsys: Capture) -> None:
    short = write_tiny_model(tmp_path / "short.gguf", TinyModel(context_length=64))
    report = bench_json(capsys, str(short), "-p", "80", "-n", "1", "-r", "1", "-c", "16")
    assert report["tests"][0]["num_tokens"] == 80


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("-p", "0", "-n", "0"), "nothing to measure"),
        (("-p", "8", "--depth", "8", "--deterministic"), "without --deterministic"),
        (("--overhead", "-p", "0", "-n", "0", "--backend", "reference"), "with ggml"),
    ],
)
def test_impossible_wishes_are_explained(
    tiny: str, capsys: Capture, flags: tuple[str, ...], reason: str
) -> None:
    assert bench(tiny, *flags) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("sizes", ["", "1,x", "0,2", "1,,2"])
def test_a_wrong_curve_is_a_usage_error(sizes: str, tiny: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        bench(tiny, "--batch-curve", sizes)
    assert "is not a list of numbers" in capsys.readouterr().err

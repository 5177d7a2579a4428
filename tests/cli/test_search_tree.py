"""`powerserve search-tree` on tiny models: what it prints, keeps and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest

from command_line import status_of
from model_pairs import ModelPair, write_pair
from powerserve.cli import run
from powerserve.cli.search_tree_flags import flags_of
from powerserve.cli.speculation_flags import speculation_options
from powerserve.evaluate.tree_search.database import PointDatabase
from powerserve.evaluate.tree_search.prompts import bundled_prompts
from powerserve.speculative.options import SpeculationMode, TreeParams

Capture = pytest.CaptureFixture[str]
SCRIPT = Path(__file__).parents[2] / "tools" / "parameter_search" / "token_tree.py"

# 12 points: 2 × 3 × 2 × 1 …; the defaults are among them.
GRID = (
    *("--draft-sampler-top-k", "10,15", "--draft-sampler-temperature", "1.2,1.5,1.8"),
    *("--draft-sampler-p-base", "0.6,0.9", "--token-tree-max-fan-out", "3"),
    *("--token-tree-min-prob", "0.2"),
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> ModelPair:
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    path = tmp_path / "prompt.txt"
    path.write_text("the world and hello in the")
    return path


def search(pair: ModelPair, prompt: Path, folder: Path, *flags: str | Path) -> int:
    models = ("-m", pair.target, "--draft-model", pair.draft)
    rest = ("-f", prompt, "-n", "24", "-o", folder, "-t", "1", *flags)
    return status_of("search-tree", *models, *GRID, *rest)


def report_json(folder: Path, capsys: Capture, *flags: str) -> dict[str, Any]:
    capsys.readouterr()
    assert status_of("search-tree", "--report", "-o", folder, "--json", *flags) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_a_search_ends_with_the_flags_to_use(
    pair: ModelPair, prompt: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "search"
    assert search(pair, prompt, folder, "--plot", tmp_path / "plot.png") == 0
    output = capsys.readouterr().out
    report = report_json(folder, capsys)
    best = report["points"][0]["params"]
    assert (report["target"], report["draft"]) == (pair.target.stem, pair.draft.stem)
    assert len(report["points"]) == 12
    assert f"--draft-sampler-temperature {best['temperature']:g} " in output.splitlines()[-1]
    assert f"the defaults with 12 nodes rank {report['default_ranks'][0]} of 12" in output
    assert "without speculation: " in output
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_the_ranking_is_by_what_the_database_says(
    pair: ModelPair, prompt: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "search"
    assert search(pair, prompt, folder) == 0
    report = report_json(folder, capsys, "--target-ms", "62.867", "--draft-ms", "8.421")
    scores = []
    for line in (folder / "database.jsonl").read_text().splitlines():
        stat = json.loads(line)["stat"]
        iterations, runs = stat["n_iterations"], stat["n_draft_times"]
        total_ms = iterations * 62.867 + (iterations + runs) * 8.421
        scores.append(stat["n_generated_tokens"] * 1000 / total_ms)
    ranked = [point["tokens_per_s"] for point in report["points"]]
    assert ranked == pytest.approx(sorted(scores, reverse=True))
    assert report["plain_tokens_per_s"] is None  # the phone's was not given


def test_times_of_several_tree_sizes_can_be_given(
    pair: ModelPair, prompt: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "search"
    assert search(pair, prompt, folder, "--draft-batch-size", "4,12", "--limit", "5") == 0
    times = ("--target-ms", "1=10,4=20,12=1000", "--draft-ms", "1")
    report = report_json(folder, capsys, *times)
    sizes = [point["params"]["draft_batch_size"] for point in report["points"]]
    assert sizes == sorted(sizes) and set(sizes) == {4, 12}
    assert report["plain_tokens_per_s"] == pytest.approx(100)
    assert len(report["default_ranks"]) == 2
    assert status_of("search-tree", "--report", "-o", folder, "--target-ms", "4=20") == 2
    assert "12=" in capsys.readouterr().err


def test_a_second_run_does_what_is_missing(
    pair: ModelPair, prompt: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "search"
    assert search(pair, prompt, folder, "--limit", "3") == 0
    first = (folder / "database.jsonl").read_bytes()
    assert first.count(b"\n") == 3
    capsys.readouterr()
    assert search(pair, prompt, folder, "--limit", "7") == 0
    assert "points: 3 of 7" in capsys.readouterr().err
    assert (folder / "database.jsonl").read_bytes().startswith(first)
    assert len(PointDatabase(folder / "database.jsonl").points) == 7


def test_ctrl_c_keeps_what_is_done(
    pair: ModelPair, prompt: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, add = tmp_path / "search", PointDatabase.add

    def add_two(self: PointDatabase, *point: Any) -> None:
        if len(self.points) == 2:
            raise KeyboardInterrupt
        add(self, *point)

    monkeypatch.setattr(PointDatabase, "add", add_two)
    assert search(pair, prompt, folder) == 130
    assert "the same command goes on from what is done" in capsys.readouterr().err
    assert len(report_json(folder, capsys)["points"]) == 2


def test_other_prompts_need_another_folder(
    pair: ModelPair, prompt: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "search"
    assert search(pair, prompt, folder, "--limit", "1") == 0
    prompt.write_text("12 and in the")
    assert search(pair, prompt, folder, "--limit", "1") == 2
    assert "about other prompts; choose another folder with -o" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--token-tree-min-prob", "2"), "min_prob must be within 0 and 1"),
        (("--plot", "speed.docx"), "format for plots"),
        (("-f", "nowhere.txt"), "nowhere.txt cannot be read"),
        (("-n", "100000"), "do not fit into the context"),
        (("-n", "1"), "nothing to speculate about"),
    ],
)
def test_impossible_wishes_are_explained(
    pair: ModelPair,
    prompt: Path,
    tmp_path: Path,
    capsys: Capture,
    flags: tuple[str, ...],
    reason: str,
) -> None:
    assert search(pair, prompt, tmp_path / "search", *flags) == 2
    assert reason in capsys.readouterr().err
    assert not list((tmp_path / "search").glob("*"))


@pytest.mark.parametrize(
    "flags",
    [
        ("--draft-sampler-top-k", "10,x"),
        ("--draft-sampler-temperature", "inf"),
        ("--token-tree-early-stop", "maybe"),
        ("--target-ms", "12=fast"),
        ("--target-ms", "0=5"),
        ("--draft-ms", "-1"),
        ("--limit", "0"),
    ],
)
def test_wrong_values_are_usage_errors(flags: tuple[str, ...], capsys: Capture) -> None:
    assert status_of("search-tree", *flags) == 2
    assert flags[0] in capsys.readouterr().err


def test_an_empty_prompt_is_refused(
    pair: ModelPair, prompt: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "empty.txt").touch()
    assert search(pair, prompt, tmp_path / "search", "-f", tmp_path / "empty.txt") == 2
    assert "a prompt is empty" in capsys.readouterr().err


def test_damaged_times_are_explained(
    pair: ModelPair, prompt: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "search"
    assert search(pair, prompt, folder, "--limit", "1") == 0
    (folder / "times.json").write_text('{"target_ms": {"1": 0, "12": 5}, "draft_ms": 1}')
    assert status_of("search-tree", "--report", "-o", folder) == 2
    assert "remove times.json to measure again" in capsys.readouterr().err


def test_a_draft_is_needed_and_must_fit(pair: ModelPair, smollm2: Path, capsys: Capture) -> None:
    assert status_of("search-tree", "-m", pair.target) == 2
    assert "name it with --draft-model" in capsys.readouterr().err
    assert status_of("search-tree", "-m", pair.target, "--draft-model", smollm2) == 2
    assert "choose a draft model of the same family" in capsys.readouterr().err


def test_two_names_with_a_plus_are_a_pair(pair: ModelPair, prompt: Path, tmp_path: Path) -> None:
    names = f"{pair.target}+{pair.draft}"
    rest = ("-f", prompt, "-n", "8", "-o", tmp_path / "search", "-t", "1")
    assert status_of("search-tree", "-m", names, *GRID, *rest, "--limit", "1") == 0


def test_a_workspace_names_both_models(pair: ModelPair, prompt: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "proj"
    assert status_of("create", "-m", pair.target, "-d", pair.draft, "-o", workspace) == 0
    rest = ("-f", prompt, "-n", "8", "-o", tmp_path / "search", "-t", "1", "--limit", "1")
    assert status_of("search-tree", "-d", workspace, *rest) == 0


def test_a_report_needs_a_search(tmp_path: Path, capsys: Capture) -> None:
    assert status_of("search-tree", "--report", "-o", tmp_path) == 2
    assert "there is no search in" in capsys.readouterr().err


def test_the_originals_path_leads_here(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--report", "-o", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("token_tree.py: error: there is no search in")


@pytest.mark.parametrize(
    "params",
    [TreeParams(), TreeParams(8, 20, 1.75, 0.625, 9, 0.175, False)],
    ids=["defaults", "others"],
)
def test_run_understands_the_flags(params: TreeParams) -> None:
    parser = ArgumentParser()
    run.configure(parser)
    options = speculation_options(parser.parse_args(flags_of(params).split()))
    assert (options.mode, options.tree) == (SpeculationMode.TREE, params)


def test_the_prompts_that_come_along_are_texts_to_continue() -> None:
    prompts = bundled_prompts()
    assert len(prompts) >= 3
    for text in prompts:
        assert 200 < len(text) < 2000

"""`powerserve mmlu` and `powerserve mmmu` on the bundled samples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from command_line import status_of
from server_process import serving
from stub_endpoint import StubEndpoint, chat_reply, error_reply, stub_endpoint
from tiny_models import TinyModel, write_tiny_model

REPOSITORY = Path(__file__).parents[2]
MMLU, MMMU = (REPOSITORY / "assets" / "evaluation" / name for name in ("mmlu", "mmmu"))
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current folder, where answers are kept by default."""
    folder = tmp_path / "current"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("POWERSERVE_API_KEY", raising=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel())


def answers_in(path: Path) -> dict[str, str]:
    """What was chosen, by question."""
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    return {line["key"]: line["chosen"] for line in lines}


def test_a_model_in_this_process(tiny: Path, capsys: Capture) -> None:
    assert status_of("mmlu", "-m", tiny, "--dataset", MMLU, "-s", "2", "-k", "2") == 0
    heading, _, *rows = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert heading == "| subject | questions | right | accuracy | 95 % interval |"
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| astronomy", "2"],
        ["| geography", "2"],
        ["| kitchen chemistry", "2"],
        ["| all questions", "6"],
    ]
    kept = answers_in(Path("mmlu-tiny-logprob.jsonl"))
    assert len(kept) == 6 and set(kept.values()) <= set("ABCD")


def test_more_questions_later(tiny: Path, capsys: Capture) -> None:
    flags = ("-m", tiny, "--dataset", MMLU, "--subjects", "geography")
    assert status_of("mmlu", *flags, "-s", "2") == 0
    first = Path("mmlu-tiny-logprob.jsonl").read_text()
    capsys.readouterr()
    assert status_of("mmlu", *flags, "-s", "0", "--json") == 0
    assert Path("mmlu-tiny-logprob.jsonl").read_text().startswith(first)
    report = json.loads(capsys.readouterr().out)
    assert report["total"]["num_answers"] == 6 and list(report["subjects"]) == ["geography"]


def test_the_same_model_answers_alike_here_and_as_a_server(smollm2: Path, capsys: Capture) -> None:
    """By log-probability; -b 256 computes as the server does."""
    flags = ("--dataset", MMLU, "-s", "2")
    assert status_of("mmlu", "-m", smollm2, *flags, "-o", "local.jsonl", "-b", "256") == 0
    with serving("-m", smollm2) as server:
        served = (*flags, "--url", server.url)
        by_logprob = ("--choose-by", "logprob", "-o", "served.jsonl")
        assert status_of("mmlu", *served, *by_logprob) == 0
        assert status_of("mmlu", *served, "-o", "replies.jsonl") == 0
        images = ("--dataset", MMMU, "--url", server.url, "--json")
        capsys.readouterr()
        assert status_of("mmmu", *images) == 0
    local, remote = answers_in(Path("local.jsonl")), answers_in(Path("served.jsonl"))
    assert len(local) == 6
    assert local == remote
    assert set(answers_in(Path("replies.jsonl")).values()) <= {*"ABCD", None}
    report = json.loads(capsys.readouterr().out)
    assert (report["num_skipped_images"], report["num_skipped_open"]) == (3, 1)
    assert report["total"]["num_answers"] == 2


def test_a_server_that_sees_is_shown_the_images(capsys: Capture) -> None:
    with stub_endpoint(lambda _: chat_reply("A")) as stub:
        assert status_of("mmmu", "--url", stub.url, "--dataset", MMMU) == 0
    images = sum(
        part["type"] == "image_url"
        for request in stub.requests
        if isinstance(content := request["messages"][-1]["content"], list)
        for part in content
    )
    assert (len(stub.requests), images) == (5, 4)
    shown = capsys.readouterr().out
    assert "| all questions | 5 | 2 |" in shown
    assert shown.endswith("1 question without options left out\n")


def test_images_that_are_refused_are_counted(capsys: Capture) -> None:
    def answer(request: Mapping[str, Any]) -> tuple[int, Any]:
        if isinstance(request["messages"][-1]["content"], list):
            return error_reply(400, "text only, please")
        return chat_reply("B")

    with stub_endpoint(answer) as stub:
        assert status_of("mmmu", "--url", stub.url, "--dataset", MMMU) == 0
    assert len(stub.requests) == 3  # one of three with images was tried
    shown = capsys.readouterr().out
    assert "3 questions with images left out: 127.0.0.1 answered 400" in shown
    assert "text only, please" in shown


def run_script(name: str, stub: StubEndpoint, *flags: str | Path) -> str:
    """What a script of the original prints when it asks a server."""
    port = stub.url.rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, REPOSITORY / "tools" / name, "--port", port, *flags],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"POWERSERVE_API_KEY": "secret"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_scripts_of_the_original() -> None:
    with stub_endpoint(lambda _: chat_reply("B")) as stub:
        flags = ("--model", "m", "--host", "127.0.0.1", "-s", "1", "--dataset", MMLU)
        shown = run_script("mmlu/mmlu_test.py", stub, *flags)
        assert "| all questions | 3 | 0 |" in shown
        original = ("--data_path", MMMU, "--output_path", "test.json", "--split", "validation")
        shown = run_script("mmmu_test/mmmu_test.py", stub, *original, "--seed", "42")
        assert "| all questions | 5 |" in shown
    assert len(answers_in(Path("test.json"))) == 5
    assert {request["model"] for request in stub.requests} == {"m", ""}
    assert set(stub.keys) == {"Bearer secret"}
    assert [each["role"] for each in stub.requests[0]["messages"]] == ["user", "assistant", "user"]


def test_a_plot_of_the_scores(tiny: Path) -> None:
    flags = ("-m", tiny, "--dataset", MMLU, "-s", "1", "--plot", "scores.svg")
    assert status_of("mmlu", *flags) == 0
    assert "kitchen chemistry" in Path("scores.svg").read_text()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--dataset", "."), "name the folder that has dev/ and test/ with --dataset"),
        (("--dataset", MMLU, "--url", "http://x", "--port", "1"), "cannot as well"),
        (("--dataset", MMLU, "--url", "nowhere"), "is not the URL of a server"),
        (("--dataset", MMLU, "--plot", "x.txt"), "does not end in a format for plots"),
        (("--dataset", MMLU, "--subjects", "law"), "there is no subject 'law'"),
        (("--dataset", MMLU, "-k", "3"), "only 2 examples"),
        (("--dataset", MMLU, "-o", "no/such/file"), "no/such/file cannot be written"),
    ],
)
def test_mistakes_are_explained(
    tiny: Path, capsys: Capture, flags: tuple[str | Path, ...], sentence: str
) -> None:
    assert status_of("mmlu", "-m", tiny, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("powerserve mmlu: error: ") and sentence in error


def test_the_model_is_not_overwritten_by_answers(tiny: Path, capsys: Capture) -> None:
    before = tiny.read_bytes()
    assert status_of("mmlu", "-m", tiny, "--dataset", MMLU, "-o", tiny) == 2
    assert "does not hold answers of a test" in capsys.readouterr().err
    assert tiny.read_bytes() == before

"""Importance matrices: what is measured, how it is stored, and runs that stop in between."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from command_line import status_of
from powerserve.convert.imatrix import ImportanceMatrix
from powerserve.convert.imatrix_file import Sums, read_imatrix, write_imatrix
from powerserve.convert.imatrix_task import ImatrixOptions, ImatrixTask, imatrix_task
from powerserve.core.errors import ModelFileError, ModelNotFoundError, UsageError
from powerserve.storage.resolve import ModelSource, resolve_model
from tiny_models import TinyModel, write_tiny_model

REFERENCE = Path(__file__).parents[1] / "reference"
TEXT = "The quick brown fox jumps over the lazy dog. " * 40
WINDOW = ImatrixOptions(window=16, num_threads=2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    path = write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf", TinyModel("qwen2"))
    return resolve_model(path)


def run_all(task: ImatrixTask) -> list[int]:
    return list(task.run(task.saved()))


def test_smollm2_sees_what_it_sees_in_llama_cpp(smollm2: Path, tmp_path: Path) -> None:
    text = (REFERENCE / "generation" / "text.txt").read_text()
    golden = json.loads((REFERENCE / "quantisation" / "smollm2-135m-imatrix.json").read_text())
    target = tmp_path / "smollm2.imatrix"
    options = ImatrixOptions(max_windows=1)
    with imatrix_task(resolve_model(smollm2), text, "text.txt", target, options) as task:
        assert run_all(task) == [1]
    found = read_imatrix(target)
    assert (found.num_chunks, found.datasets) == (1, ("text.txt",))
    assert found.means.keys() == golden["sums"].keys()
    for name, total in golden["sums"].items():
        assert found.means[name].sum() == pytest.approx(total, rel=0.02)
    for name, columns in golden["columns"].items():
        error = np.abs(found.means[name][0] - columns).sum() / np.sum(columns)
        assert error < 0.02


def test_windows_add_up(tiny: ModelSource, tmp_path: Path) -> None:
    """The sums over two windows are those over each of them, as each begins anew."""
    both, first, second = (tmp_path / name for name in ("both", "first", "second"))
    with imatrix_task(tiny, TEXT, "t", both, WINDOW) as task:
        tokens = task.windows
        for target, part in ((both, tokens[:2]), (first, tokens[:1]), (second, tokens[1:2])):
            single = ImatrixTask(task.backend, task.model, "id", part, "t", target)
            run_all(single)
    for name, mean in read_imatrix(both).means.items():
        parts = [read_imatrix(path).means[name] for path in (first, second)]
        np.testing.assert_allclose(mean, sum(parts) / 2, rtol=1e-5)
    counts = next(t for t in GGUFReader(both).tensors if t.name.endswith(".counts"))
    assert counts.data.tolist() == [[32]]


def test_a_stopped_run_is_continued(tiny: ModelSource, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    with imatrix_task(tiny, TEXT, "t", whole, WINDOW) as task:
        run_all(task)
    with imatrix_task(tiny, TEXT, "t", stopped, WINDOW) as task:
        steps = task.run(task.saved())
        assert [next(steps) for _ in range(3)] == [1, 2, 3]
        steps.close()
        assert not stopped.exists()
        assert run_all(task)[0] == 4
        assert not task.part_path.exists()
    expected = read_imatrix(whole).means
    for name, values in read_imatrix(stopped).means.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6)


def test_only_the_same_work_is_continued(tiny: ModelSource, tmp_path: Path) -> None:
    target = tmp_path / "out"

    def first_step(source: ModelSource, text: str) -> int:
        with imatrix_task(source, text, "t", target, WINDOW) as task:
            steps = task.run(task.saved())
            number = next(steps)
            steps.close()
            return number

    other = write_tiny_model(tmp_path / "other.gguf", TinyModel("qwen2", seed=1))
    assert first_step(tiny, TEXT) == 1
    assert first_step(tiny, TEXT + TEXT) == 2  # more of the same text
    assert first_step(tiny, "Now for something different. " * 40) == 1
    assert first_step(resolve_model(other), "Now for something different. " * 40) == 1
    part = tmp_path / "out.part"
    part.write_bytes(part.read_bytes()[:500])
    assert first_step(resolve_model(other), TEXT) == 1


def test_a_killed_run_leaves_no_half_file_and_can_be_repeated(
    tiny: ModelSource, tmp_path: Path
) -> None:
    text, target = tmp_path / "text.txt", tmp_path / "out.imatrix"
    text.write_text(TEXT * 200)
    command = [sys.executable, "-m", "powerserve", "imatrix", "-m", str(tiny.weights)]
    command += ["-f", str(text), "-o", str(target), "-c", "16"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.readline()  # it has begun
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not target.exists()
    done = subprocess.run([*command, "--chunks", "3"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{target}: 3 windows of 16 tokens\n")
    assert read_imatrix(target).num_chunks == 3


def test_a_short_text_is_refused(tiny: ModelSource, tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"one window has 512; give a longer text"),
        imatrix_task(tiny, "Too short.", "t", tmp_path / "out", ImatrixOptions()),
    ):
        pass


def test_files_are_what_the_gguf_package_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.imatrix"
    squares = np.arange(6, dtype=np.float32).reshape(2, 3)
    sums = {"blk.0.x.weight": Sums(squares, np.array([4, 0], np.float32))}
    write_imatrix(path, sums, num_chunks=2, chunk_size=512, datasets=["a", "b"])
    reader = GGUFReader(path)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["a", "b"]
    assert reader.fields["imatrix.chunk_count"].contents() == 2
    assert reader.fields["imatrix.chunk_size"].contents() == 512
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    np.testing.assert_array_equal(tensors["blk.0.x.weight.in_sum2"], squares)
    np.testing.assert_array_equal(tensors["blk.0.x.weight.counts"], [[4], [0]])
    found = read_imatrix(path)
    # An expert that no token met counts all its columns alike.
    np.testing.assert_allclose(found.means["blk.0.x.weight"], [[0, 0.25, 0.5], [1, 1, 1]])


def binary_imatrix(ending: bytes) -> bytes:
    """The older format, byte by byte."""
    entry = struct.pack("<i", 6) + b"weight" + struct.pack("<ii3f", 5, 3, 5, 10, 0)
    return struct.pack("<i", 1) + entry + ending


def test_the_older_format_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.dat"
    path.write_bytes(binary_imatrix(struct.pack("<ii", 17, 8) + b"text.txt"))
    found = read_imatrix(path)
    np.testing.assert_allclose(found.means["weight"], [[1, 2, 0]])
    assert (found.num_chunks, found.datasets) == (17, ("text.txt",))
    path.write_bytes(binary_imatrix(b""))
    assert read_imatrix(path).num_chunks == 0


@pytest.mark.parametrize("length", range(0, 30, 3))
def test_a_truncated_file_is_noticed(tmp_path: Path, length: int) -> None:
    path = tmp_path / "old.dat"
    path.write_bytes(binary_imatrix(b"")[:length])
    with pytest.raises(ModelFileError, match="not an importance matrix, or it is damaged"):
        read_imatrix(path)


def test_other_files_are_not_importance_matrices(tiny: ModelSource, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is not an importance matrix"):
        read_imatrix(tiny.weights)
    noise = tmp_path / "noise"
    noise.write_bytes(b"PK\x03\x04" + bytes(range(256)) * 10)
    with pytest.raises(ModelFileError, match="is not an importance matrix"):
        read_imatrix(noise)
    with pytest.raises(ModelNotFoundError):
        read_imatrix(tmp_path / "missing")
    with pytest.raises(ModelFileError):
        read_imatrix(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1])
def test_values_that_are_no_mean_squares_are_refused(value: float) -> None:
    means = {"w": np.array([[1, value]], np.float32)}
    with pytest.raises(ModelFileError, match="data of w are not mean squares"):
        ImportanceMatrix(means, 1, (), Path("a.imatrix"))


def test_targets_that_cannot_be_or_would_do_harm_are_refused(
    tiny: ModelSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    cases = {
        tmp_path / "no" / "x": "name a file in a folder that exists",
        tmp_path: "name a file in a folder that exists",
        tiny.weights: "tiny.gguf would be overwritten",
        text: "text.txt would be overwritten",
    }
    for target, message in cases.items():
        assert status_of("imatrix", "-m", tiny.weights, "-f", text, "-o", target) == 2
        assert message in capsys.readouterr().err
    assert text.read_text() == TEXT

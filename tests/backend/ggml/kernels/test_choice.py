"""Whose kernels a model gets: what the user says, what is there, and what was measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path

import pytest

from command_line import status_of
from powerserve import LLM, LoadOptions
from powerserve.backend.ggml import locate as ggml_locate
from powerserve.backend.ggml.backend import GgmlBackend, GgmlModel, GgmlOptions
from powerserve.backend.ggml.kernels import measurement
from powerserve.backend.ggml.kernels.choice import KernelChoice
from powerserve.backend.ggml.kernels.library import KernelLibrary
from powerserve.backend.ggml.kernels.locate import ENVIRONMENT_VARIABLE
from powerserve.backend.ggml.kernels.measurement import Comparison
from powerserve.core import dtypes
from powerserve.core.dtypes import DType
from powerserve.core.errors import BackendError, UsageError
from powerserve.model.config import config_from_metadata
from powerserve.model.registry import build_graph
from powerserve.storage.gguf import GGUFFile
from tiny_models import TinyModel, write_tiny_model

FAST, SLOW = (0.001, 0.01), (0.002, 0.02)  # seconds of 1 and of 64 tokens


@pytest.fixture(autouse=True)
def timings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of timings in an empty cache; ggml is that of all tests."""
    monkeypatch.setenv(ggml_locate.ENVIRONMENT_VARIABLE, str(ggml_locate.library_folder()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    return tmp_path / "cache" / "powerserve" / "kernel-timings"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A model of Q8_0."""
    return write_tiny_model(tmp_path / "tiny.gguf", TinyModel(dtype="Q8_0", num_layers=1))


@pytest.fixture
def with_kernels(kernel_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our kernels are there."""
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(kernel_file))


class Stopwatch:
    """Says what is faster, and counts how often it is asked."""

    def __init__(self, **seconds: Comparison) -> None:
        self._seconds = seconds
        self.asked: list[str] = []

    def __call__(self, backend: GgmlBackend, kernels: KernelLibrary, dtype: DType) -> Comparison:
        self.asked.append(str(dtype))
        return self._seconds[str(dtype)]


@pytest.fixture
def stopwatch(with_kernels: None, monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    """Our kernels are faster, as far as anybody measures."""
    stopwatch = Stopwatch(Q8_0=Comparison(ggml=SLOW, native=FAST))
    monkeypatch.setattr(measurement, "compare", stopwatch)
    return stopwatch


@contextmanager
def opened(choice: KernelChoice, num_threads: int = 1) -> Iterator[GgmlBackend]:
    """A backend."""
    backend = GgmlBackend(GgmlOptions(num_threads=num_threads, kernels=choice))
    yield backend
    backend.close()


def packed_types(
    path: Path, choice: KernelChoice = KernelChoice.AUTO, num_threads: int = 1
) -> set[str]:
    """The types of matrices that our kernels get of a model."""
    with opened(choice, num_threads) as backend, GGUFFile.open(path) as file:
        config = config_from_metadata(file.metadata, file.tensors)
        model = backend.load(config, build_graph(config), file.tensors)
        assert isinstance(model, GgmlModel)
        packing = model.packing
        assert (packing is not None) == ("kernels" in model.weights.buffer_sizes)
        model.close()
    return set() if packing is None else set(map(str, packing.dtypes))


def test_native_without_a_library_is_an_error(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("run", "-m", path, "-p", "hello", "--kernels", "native") == 2
    error = capsys.readouterr().err
    assert "have not been compiled here; do it with `powerserve build-native`" in error
    assert "Traceback" not in error


def test_auto_without_a_library_is_ggml(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert packed_types(path) == set()
    assert not caplog.records


def test_ggml_means_ggml(stopwatch: Stopwatch, path: Path) -> None:
    assert packed_types(path, KernelChoice.GGML) == set()
    assert not stopwatch.asked


def test_native_asks_nobody(stopwatch: Stopwatch, path: Path) -> None:
    assert packed_types(path, KernelChoice.NATIVE) == {"Q8_0"}
    assert not stopwatch.asked


@pytest.mark.parametrize("choice", [KernelChoice.AUTO, KernelChoice.NATIVE])
def test_a_model_without_anything_to_pack_is_ggmls(
    stopwatch: Stopwatch, tmp_path: Path, choice: KernelChoice
) -> None:
    path = write_tiny_model(tmp_path / "half.gguf", TinyModel(dtype="F16", num_layers=1))
    assert packed_types(path, choice) == set()
    assert not stopwatch.asked


def test_another_word_is_an_error(path: Path) -> None:
    with pytest.raises(UsageError, match=r"no kernels 'ours'; choose from auto, ggml, native"):
        LLM(path, LoadOptions(kernels="ours"))


@pytest.mark.parametrize("size", [0, 10, 100, 5000, 100_000, -1])
def test_a_library_that_is_cut_off_is_not_used(
    kernel_file: Path,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    size: int,
) -> None:
    broken = path.with_name("broken.so")
    broken.write_bytes(kernel_file.read_bytes()[:size])
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(broken))
    assert_not_used(path, caplog, "cannot be loaded")


def test_a_file_that_is_no_library_is_not_used(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(path))
    assert_not_used(path, caplog, "cannot be loaded")


def test_a_library_of_another_version_is_not_used(
    with_kernels: None,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("powerserve.backend.ggml.kernels.library.ABI", 99)
    assert_not_used(path, caplog, r"are of version \d+; 99 is needed")


def assert_not_used(path: Path, caplog: pytest.LogCaptureFixture, reason: str) -> None:
    """`auto` warns and leaves everything to ggml; `native` fails."""
    assert packed_types(path) == set()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message.startswith("our own kernels are not used: the kernels in ")
    with pytest.raises(BackendError, match=reason):
        packed_types(path, KernelChoice.NATIVE)


@pytest.mark.parametrize(
    ("ggml", "native", "expected"),
    [
        (SLOW, FAST, {"Q8_0"}),
        (FAST, SLOW, set()),
        ((0.001, 0.01), (0.0005, 0.1), set()),  # answers are faster, prompts much slower
        ((0.001, 0.1), (0.0012, 0.01), {"Q8_0"}),
    ],
)
def test_auto_goes_by_the_numbers(
    stopwatch: Stopwatch,
    timings: Path,
    path: Path,
    ggml: tuple[float, float],
    native: tuple[float, float],
    expected: set[str],
) -> None:
    packed_types(path)
    (file,) = timings.iterdir()
    file.write_text(json.dumps({"Q8_0": {"ggml": ggml, "native": native}}))
    assert packed_types(path) == expected
    assert stopwatch.asked == ["Q8_0"]  # the first time


def test_every_type_is_judged_by_itself(
    with_kernels: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stopwatch = Stopwatch(Q8_0=Comparison(FAST, SLOW), Q4_0=Comparison(SLOW, FAST))
    monkeypatch.setattr(measurement, "compare", stopwatch)
    for dtype, expected in (("Q8_0", set()), ("Q4_0", {"Q4_0"}), ("Q8_0", set())):
        path = write_tiny_model(tmp_path / f"{dtype}.gguf", TinyModel(dtype=dtype, num_layers=1))
        assert packed_types(path) == expected
    assert stopwatch.asked == ["Q8_0", "Q4_0"]


def test_threads_and_libraries_are_measured_by_themselves(
    stopwatch: Stopwatch,
    kernel_file: Path,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed_types(path)
    packed_types(path, num_threads=2)
    assert len(stopwatch.asked) == 2
    copy = shutil.copy(kernel_file, path.with_name("copy.so"))
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(copy))
    packed_types(path)
    packed_types(path)
    assert len(stopwatch.asked) == 3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"Q8_0": 1}', '{"Q8_0": {"ggml": [1]}}'])
def test_damaged_timings_are_measured_again(
    stopwatch: Stopwatch, timings: Path, path: Path, content: str
) -> None:
    packed_types(path)
    (file,) = timings.iterdir()
    before = file.read_text()
    file.write_text(content)
    assert packed_types(path) == {"Q8_0"}
    assert len(stopwatch.asked) == 2
    assert file.read_text() == before


def test_timings_that_cannot_be_kept_are_no_error(
    stopwatch: Stopwatch, timings: Path, path: Path
) -> None:
    timings.parent.mkdir(parents=True)
    timings.write_text("in the way")
    assert packed_types(path) == packed_types(path) == {"Q8_0"}
    assert len(stopwatch.asked) == 2


def test_both_are_timed(with_kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "ROWS", 64)
    with opened(KernelChoice.AUTO) as backend:
        assert backend.kernels is not None
        for dtype in (dtypes.Q4_K, dtypes.Q8_0):
            found = measurement.compare(backend, backend.kernels, dtype)
            assert all(0 < short < long < inf for short, long in (found.ggml, found.native))

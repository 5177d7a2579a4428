"""Quantised files hold what ggml's quantisers make of each row, and nothing else has changed."""

from __future__ import annotations

import ctypes
import resource
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

from powerserve.backend.ggml.library import GgmlLibrary
from powerserve.backend.ggml.locate import library_file, library_folder
from powerserve.backend.ggml.quantisers import Quantisers
from powerserve.convert.imatrix import ImportanceMatrix
from powerserve.convert.quantize import plan_quantisation, write_quantised
from powerserve.convert.quantize_rows import TensorConverter
from powerserve.convert.quantize_types import TensorPlan, TypeChoices
from powerserve.convert.recipes import element_types, find_recipe
from powerserve.core.dtypes import F32, Q4_K, DType
from powerserve.core.errors import ModelFileError, UsageError
from powerserve.storage.gguf import GGUFFile, TensorInfo
from stop_after import StopAfter
from tiny_models import TinyModel, write_tiny_model

FloatArray = npt.NDArray[np.float32]
SIZES = TinyModel(embed_dim=256, ffn_dim=512, num_layers=2, num_heads=4, num_kv_heads=2)
PURE = TypeChoices(pure=True)
# Root mean square of the error over that of the weights, for normally distributed weights; what
# the published descriptions of the types promise, with some room.
RELATIVE_ERROR = {
    "F32": 0, "BF16": 0.002, "F16": 0.0003, "Q8_0": 0.006, "Q6_K": 0.02, "Q5_1": 0.04, "Q5_K": 0.04,
    "Q5_0": 0.05, "Q4_1": 0.08, "Q4_K": 0.08, "Q4_0": 0.1, "IQ4_NL": 0.09, "IQ4_XS": 0.09,
    "Q3_K": 0.17, "Q2_K": 0.35,
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in F32 whose rows are whole blocks of every type."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf", SIZES)


def quantised(
    source: Path,
    target: Path,
    recipe: str,
    choices: TypeChoices = PURE,
    importance: ImportanceMatrix | None = None,
) -> Path:
    with GGUFFile.open(source) as model:
        plan = plan_quantisation(model, find_recipe(recipe), choices, importance)
        write_quantised(plan, target, num_threads=2)
    return target


def importance_of(source: Path) -> ImportanceMatrix:
    rng = np.random.default_rng(1)
    with GGUFFile.open(source) as model:
        means = {
            name: rng.random((1, tensor.shape[-1]), np.float32) + np.float32(0.01)
            for name, tensor in model.tensors.items()
            if len(tensor.shape) == 2 and name.startswith("blk.")
        }
    return ImportanceMatrix(means, 7, ("text.txt",), Path("/some/where/tiny.imatrix"))


def ggml_row_by_row(values: FloatArray, dtype: DType, weights: FloatArray | None) -> bytes:
    """`values` by ggml's quantiser, called once for each row."""
    function = ctypes.CDLL(str(library_file(library_folder(), "ggml-base"))).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
        *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
    ]
    rows = []
    for row in np.ascontiguousarray(values):
        data = np.zeros(dtype.size_bytes(row.size), np.uint8)
        address = None if weights is None else weights.ctypes.data
        function(dtype.ggml_id, row.ctypes.data, data.ctypes.data, 0, 1, row.size, address)
        rows.append(data.tobytes())
    return b"".join(rows)


@pytest.mark.parametrize("with_importance", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("dtype", element_types(), ids=str)
def test_bytes_are_those_of_ggml_and_decode_to_the_weights(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: DType,
    with_importance: bool,
) -> None:
    monkeypatch.setattr("powerserve.convert.quantize_rows.PIECE_ELEMENTS", 5000)
    importance = importance_of(source) if with_importance else None
    recipe = {"Q3_K": "Q3_K_S", "Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S"}.get(dtype.name, dtype.name)
    target = quantised(source, tmp_path / "out.gguf", recipe, importance=importance)
    with GGUFFile.open(source) as before, GGUFFile.open(target) as after:
        for name in ("blk.1.ffn_down.weight", "token_embd.weight"):
            old, new = before.tensors[name], after.tensors[name]
            values = old.data.view(np.float32).reshape(old.shape)
            weights = importance.means.get(name) if importance else None
            assert new.dtype == dtype
            assert new.data.tobytes() == ggml_row_by_row(values, dtype, weights)
            rows = new.data.reshape(len(values), -1)
            decoded = dequantize(rows, GGMLQuantizationType(dtype.ggml_id))
            error = float(np.sqrt(np.mean((decoded - values) ** 2)) / values.std())
            assert error <= RELATIVE_ERROR[dtype.name] * (1.5 if importance else 1)


def test_an_importance_matrix_lowers_the_error_it_weighs(source: Path, tmp_path: Path) -> None:
    name = "blk.0.attn_q.weight"
    importance = importance_of(source)
    exponents = np.random.default_rng(2).uniform(-4, 0, (1, SIZES.embed_dim))
    skewed = (10**exponents).astype(np.float32)
    importance = replace(importance, means={**importance.means, name: skewed})
    errors = []
    for matrix in (None, importance):
        target = quantised(source, tmp_path / "out.gguf", "Q4_0", importance=matrix)
        values = GGUFReader(source).get_tensor(tensor_index(source, name)).data
        rows = GGUFReader(target).get_tensor(tensor_index(target, name)).data
        decoded = dequantize(rows, GGMLQuantizationType.Q4_0)
        errors.append(float((skewed * (decoded - values) ** 2).sum()))
    assert errors[1] < 0.8 * errors[0]


def tensor_index(path: Path, name: str) -> int:
    return [tensor.name for tensor in GGUFReader(path).tensors].index(name)


def test_each_expert_has_its_own_importance() -> None:
    """A tensor [experts, rows, columns] is as many matrices."""
    rng = np.random.default_rng(4)
    values = rng.normal(size=(3, 8, 256)).astype(np.float32)
    data = values.view(np.uint8).ravel()
    tensor = TensorInfo("blk.0.ffn_up_exps.weight", values.shape, F32, 0, data.nbytes, data)
    means = rng.random((3, 256), np.float32)
    importance = ImportanceMatrix({tensor.name: means}, 1, (), Path("x"))
    importance.check_fits({tensor.name: tensor.shape})
    with ThreadPoolExecutor(2) as pool:
        quantisers = Quantisers(GgmlLibrary(library_folder()))
        converter = TensorConverter(quantisers, pool, 2, importance)
        found = b"".join(converter.pieces(TensorPlan(tensor, Q4_K)))
    assert found == b"".join(map(ggml_row_by_row, values, [Q4_K] * 3, means))


def test_what_is_no_matrix_and_all_metadata_stay(source: Path, tmp_path: Path) -> None:
    target = quantised(source, tmp_path / "out.gguf", "Q4_K_M", importance=importance_of(source))
    before, after = GGUFReader(source), GGUFReader(target)
    changed = {
        "general.file_type": 15,
        "general.quantization_version": 2,
        "quantize.imatrix.file": "tiny.imatrix",  # no path of this machine in a file for others
        "quantize.imatrix.dataset": "text.txt",
        "quantize.imatrix.entries_count": 14,
        "quantize.imatrix.chunks_count": 7,
    }
    for key, value in changed.items():
        assert after.fields[key].contents() == value
    same = [key for key in before.fields if key not in changed and not key.startswith("GGUF.")]
    for key in same:
        assert after.fields[key].types == before.fields[key].types
        assert after.fields[key].contents() == before.fields[key].contents()
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert (new.name, list(new.shape)) == (old.name, list(old.shape))
        if len(old.shape) == 1:
            assert new.tensor_type == GGMLQuantizationType.F32
            np.testing.assert_array_equal(new.data, old.data)


def test_the_plan_tells_the_size_of_the_file(source: Path, tmp_path: Path) -> None:
    with GGUFFile.open(source) as model:
        plan = plan_quantisation(model, find_recipe("Q5_1"))
        write_quantised(plan, tmp_path / "out.gguf")
    assert plan.file_bytes == (tmp_path / "out.gguf").stat().st_size


def test_shards_become_one_file(tmp_path: Path) -> None:
    whole = quantised(write_tiny_model(tmp_path / "a.gguf", SIZES), tmp_path / "a8.gguf", "Q8_0")
    first_shard = write_tiny_model(tmp_path / "b.gguf", SIZES, max_tensors_per_file=5)
    target = quantised(first_shard, tmp_path / "b8.gguf", "Q8_0")
    with GGUFFile.open(whole) as expected, GGUFFile.open(target) as found:
        assert not [key for key in found.metadata if key.startswith("split.")]
        assert found.tensors.keys() == expected.tensors.keys()
        for name, tensor in found.tensors.items():
            assert tensor.data.tobytes() == expected.tensors[name].data.tobytes()
        with pytest.raises(UsageError, match="the model itself"):
            shard = sorted(tmp_path.glob("b-*-of-*.gguf"))[1]
            model = GGUFFile.open(first_shard)
            write_quantised(plan_quantisation(model, find_recipe("Q8_0")), shard)


def test_alignment_of_the_source_is_kept(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "a.gguf", replace(SIZES, alignment=64))
    target = quantised(path, tmp_path / "b.gguf", "Q5_0")
    with GGUFFile.open(target) as model:
        assert all(tensor.offset % 64 == 0 for tensor in model.tensors.values())


def test_quantising_again_must_be_insisted_on(source: Path, tmp_path: Path) -> None:
    once = quantised(source, tmp_path / "q8.gguf", "Q8_0")
    with GGUFFile.open(once) as model:
        with pytest.raises(UsageError, match=r"quantised already.*--allow-requantize"):
            plan_quantisation(model, find_recipe("Q4_0"))
        twice = plan_quantisation(model, find_recipe("Q4_0"), PURE, allow_requantize=True)
        write_quantised(twice, tmp_path / "q4.gguf")
    decoded = dequantize(GGUFReader(once).get_tensor(0).data, GGMLQuantizationType.Q8_0)
    expected = ggml_row_by_row(decoded, next(t for t in element_types() if t.name == "Q4_0"), None)
    with GGUFFile.open(tmp_path / "q4.gguf") as model:
        assert next(iter(model.tensors.values())).data.tobytes() == expected


def test_a_quantised_model_may_be_unpacked(source: Path, tmp_path: Path) -> None:
    once = quantised(source, tmp_path / "q8.gguf", "Q8_0")
    twice = quantised(once, tmp_path / "f16.gguf", "F16")
    values = dequantize(GGUFReader(once).get_tensor(0).data, GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(GGUFReader(twice).get_tensor(0).data, values.astype(np.float16))


@pytest.mark.parametrize(
    ("value", "recipe", "message"),
    [(np.nan, "Q4_0", "not finite"), (np.inf, "F16", "not finite"), (1e6, "F16", "too large")],
)
def test_numbers_that_no_type_holds_are_refused(
    tmp_path: Path, value: float, recipe: str, message: str
) -> None:
    path = write_tiny_model(tmp_path / "a.gguf")
    with GGUFFile.open(path) as model:
        offset = model.tensors["blk.1.ffn_up.weight"].offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 4] = np.float32(value).tobytes()
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=rf"blk\.1\.ffn_up\.weight.*{message}"):
        quantised(path, tmp_path / "b.gguf", recipe)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.gguf"]


def test_an_importance_matrix_of_another_model_is_refused(source: Path) -> None:
    right = importance_of(source)
    name = "blk.0.attn_q.weight"
    wider = {**right.means, name: np.ones((1, 512), np.float32)}
    deeper = {**right.means, "blk.2.attn_q.weight": np.ones((1, 256), np.float32)}
    with GGUFFile.open(source) as model:
        for means, reason in ((wider, "512 columns there and 256"), (deeper, r"blk\.2\.attn_q")):
            with pytest.raises(ModelFileError, match=f"made for another model: .*{reason}"):
                plan_quantisation(
                    model, find_recipe("Q4_0"), importance=replace(right, means=means)
                )


def test_ctrl_c_leaves_no_file(source: Path, tmp_path: Path) -> None:
    with GGUFFile.open(source) as model, pytest.raises(KeyboardInterrupt):
        plan = plan_quantisation(model, find_recipe("Q4_0"))
        write_quantised(plan, tmp_path / "out.gguf", progress=StopAfter(1 << 16))
    assert not list(tmp_path.iterdir())


def test_a_killed_run_leaves_no_half_file_and_can_be_repeated(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    code = f"""
        import os, signal
        from contextlib import contextmanager
        from pathlib import Path
        from powerserve.convert.quantize import plan_quantisation, write_quantised
        from powerserve.convert.recipes import find_recipe
        from powerserve.storage.gguf import GGUFFile
        from powerserve.storage.progress import Silent

        class Kill(Silent):
            @contextmanager
            def transfer(self, *arguments):
                yield lambda num_bytes: os.kill(os.getpid(), signal.SIGKILL)

        plan = plan_quantisation(GGUFFile.open({str(source)!r}), find_recipe("Q4_0"))
        write_quantised(plan, Path({str(target)!r}), progress=Kill())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)])
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    quantised(source, target, "Q4_0")
    assert GGUFFile.open(target).tensors


def test_a_full_disk_is_a_sentence_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk: the kernel refuses to write on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, before[1]))
    try:
        with pytest.raises(UsageError, match=r"out\.gguf cannot be written: File too large"):
            quantised(source, tmp_path / "out.gguf", "Q8_0")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def test_a_disk_with_too_little_space_is_noticed_before_the_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Free())
    with pytest.raises(UsageError, match=r"only 1 kB are free"):
        quantised(source, tmp_path / "out.gguf", "Q8_0")


class Free:
    """What `shutil.disk_usage` says of a disk that is almost full."""

    free = 1000

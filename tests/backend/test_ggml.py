"""The ggml backend against the numpy reference: every operation, architecture and kind of batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from batches import Tokens, batch_of, one_slice, shape_of
from powerserve.backend.base import (
    Backend,
    Batch,
    Cache,
    LoadedModel,
    SliceShape,
    StepInterrupted,
    StepShape,
)
from powerserve.backend.ggml.backend import GgmlBackend, GgmlOptions
from powerserve.backend.reference import ReferenceBackend
from powerserve.core import dtypes
from powerserve.core.dtypes import DType
from powerserve.core.errors import BackendError, UnsupportedModelError, UsageError
from powerserve.model.config import config_from_metadata
from powerserve.model.decoder import HIDDEN
from powerserve.model.registry import build_graph
from powerserve.storage.gguf import GGUFFile
from tiny_models import TinyModel, write_tiny_model

NUM_CELLS = 32
TREE = Tokens([5, 6, 7, 8, 9], cells=[12, 3, 7, 20, 1], context=[9, 4], parents=[-1, 0, 0, 1, 2])


@pytest.fixture(scope="module")
def ggml() -> Iterator[GgmlBackend]:
    backend = GgmlBackend(GgmlOptions(num_threads=2))
    yield backend
    backend.close()


@contextmanager
def loaded(backend: Backend, path: Path) -> Iterator[LoadedModel]:
    with GGUFFile.open(path) as file:
        config = config_from_metadata(file.metadata, file.tensors)
        model = backend.load(config, build_graph(config), file.tensors)
        yield model
        model.close()


def logits(model: LoadedModel, *batches: Batch, kv: DType = dtypes.F32) -> np.ndarray:
    """Run batches one after another over one cache; the logits of all of them."""
    cache = model.new_cache(NUM_CELLS, kv)
    rows = [step(model, cache, batch) for batch in batches]
    cache.close()
    return np.concatenate(rows)


def step(model: LoadedModel, cache: Cache, batch: Batch) -> np.ndarray:
    executable = model.compile(shape_of(batch, NUM_CELLS), cache)
    logits = executable.run(batch).copy()
    executable.close()
    return logits


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def prefill_then_tree() -> tuple[Batch, Batch]:
    """Two tokens into scattered cells, then a token tree that continues them."""
    positions = [2, 3, 3, 4, 4]
    tree = Tokens(TREE.ids, TREE.cells, TREE.context, TREE.parents, positions)
    return batch_of(Tokens([3, 4], cells=[9, 4])), batch_of(tree)


VARIANTS = {
    "llama": TinyModel(),
    "llama-tied": TinyModel(tied=True),
    "llama-rope-factors": TinyModel(rope_factors=True),
    "llama-linear": TinyModel(rope_scaling="linear"),
    "llama-yarn": TinyModel(rope_scaling="yarn"),
    "qwen2": TinyModel(architecture="qwen2"),
    "qwen2-yarn": TinyModel(architecture="qwen2", rope_scaling="yarn"),
    "qwen3": TinyModel(architecture="qwen3"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_architectures_agree_with_the_reference(
    ggml: GgmlBackend, tmp_path: Path, name: str
) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", VARIANTS[name])
    with loaded(ggml, path) as fast, loaded(ReferenceBackend(), path) as slow:
        found = logits(fast, *prefill_then_tree())
        expected = logits(slow, *prefill_then_tree())
    assert relative_error(found, expected) < 1e-3


@pytest.mark.parametrize("dtype", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("tied", [False, True])
def test_quantised_weights_agree_with_the_reference(
    ggml: GgmlBackend, tmp_path: Path, dtype: str, tied: bool
) -> None:
    """ggml quantises activations to 8 bits as well, so only roughly."""
    path = write_tiny_model(tmp_path / "tiny.gguf", TinyModel(dtype=dtype, tied=tied))
    with loaded(ggml, path) as fast, loaded(ReferenceBackend(), path) as slow:
        found = logits(fast, *prefill_then_tree())
        expected = logits(slow, *prefill_then_tree())
    assert relative_error(found, expected) < 0.03


@pytest.mark.parametrize("dtype", ["Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_agree_with_the_reference(ggml: GgmlBackend, tmp_path: Path, dtype: str) -> None:
    tiny = TinyModel(dtype=dtype, embed_dim=256, ffn_dim=256)
    path = write_tiny_model(tmp_path / "tiny.gguf", tiny)
    with loaded(ggml, path) as fast, loaded(ReferenceBackend(), path) as slow:
        found = logits(fast, *prefill_then_tree())
        expected = logits(slow, *prefill_then_tree())
    assert relative_error(found, expected) < 0.05


def test_cache_types_agree(ggml: GgmlBackend, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", TinyModel(head_dim=32))
    with loaded(ggml, path) as model:
        exact = logits(model, *prefill_then_tree())
        half = logits(model, *prefill_then_tree(), kv=dtypes.F16)
        eight_bits = logits(model, *prefill_then_tree(), kv=dtypes.Q8_0)
    assert relative_error(half, exact) < 2e-3
    assert 0 < relative_error(eight_bits, exact) < 2e-2


def test_mapped_weights_give_the_same_logits(ggml: GgmlBackend, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", TinyModel(dtype="Q8_0", tied=True))
    mapping = GgmlBackend(GgmlOptions(num_threads=1, use_mmap=True))
    with loaded(ggml, path) as copied, loaded(mapping, path) as mapped:
        batch = batch_of(Tokens([3, 4, 5], cells=[0, 1, 2]))
        np.testing.assert_array_equal(logits(mapped, batch), logits(copied, batch))
        assert "mapped" in mapped.weights.buffer_sizes
    mapping.close()


def test_sequences_in_one_batch_do_not_see_each_other(ggml: GgmlBackend, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf")
    with loaded(ggml, path) as model:
        one, two = Tokens([3, 4, 5], cells=[0, 2, 4]), Tokens([6, 7], cells=[1, 3])
        together = logits(model, batch_of(one, two))
        apart = np.concatenate([logits(model, batch_of(one)), logits(model, batch_of(two))])
    assert relative_error(together, apart) < 1e-5


def test_shapes_take_turns_over_one_compute_buffer(ggml: GgmlBackend, tmp_path: Path) -> None:
    """A larger shape makes the shared buffer grow; graphs compiled before must still be right."""
    path = write_tiny_model(tmp_path / "tiny.gguf")
    with loaded(ggml, path) as model:
        cache = model.new_cache(512, dtypes.F16)
        small = model.compile(one_slice(1, 256, 1), cache)
        batch = batch_of(Tokens([3], cells=[0]))
        before = small.run(batch).copy()
        large = model.compile(one_slice(200, 512, 200), cache)
        large.run(batch_of(Tokens(list(range(200)), cells=list(range(200, 400)))))
        np.testing.assert_array_equal(small.run(batch), before)


def test_cells_can_be_copied_saved_and_restored(ggml: GgmlBackend, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf")
    with loaded(ggml, path) as model:
        cache = model.new_cache(NUM_CELLS, dtypes.F16)
        step(model, cache, batch_of(Tokens([3, 4], cells=[0, 1])))
        original = step(model, cache, batch_of(Tokens([5], cells=[2], context=[0, 1])))
        cache.copy(np.array([0, 1]), np.array([10, 11]))
        copied = step(model, cache, batch_of(Tokens([5], cells=[12], context=[10, 11])))
        np.testing.assert_array_equal(copied, original)
        content = cache.save(np.array([0, 1]))
        other = model.new_cache(NUM_CELLS, dtypes.F16)
        other.restore(np.array([20, 21]), content)
        restored = step(model, other, batch_of(Tokens([5], cells=[22], context=[20, 21])))
        np.testing.assert_array_equal(restored, original)
        with pytest.raises(BackendError, match="do not hold 3 cells"):
            other.restore(np.array([0, 1, 2]), content)


def test_an_interrupt_stops_steps_until_resumed(ggml: GgmlBackend, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf")
    with loaded(ggml, path) as model:
        cache = model.new_cache(NUM_CELLS, dtypes.F16)
        batch = batch_of(Tokens([3], cells=[0]))
        expected = step(model, cache, batch)
        ggml.interrupt()
        with pytest.raises(StepInterrupted):
            step(model, cache, batch)
        ggml.resume()
        np.testing.assert_array_equal(step(model, cache, batch), expected)


def test_a_range_that_begins_late_gives_the_same_logits(ggml: GgmlBackend, tmp_path: Path) -> None:
    """Two sequences, each of which attends to a range of its own."""
    path = write_tiny_model(tmp_path / "tiny.gguf")
    with loaded(ggml, path) as model:
        one = Tokens([3, 4, 5], cells=[8, 9, 10])
        two = Tokens([6, 7], cells=[21, 20])
        batch = batch_of(one, two)
        ranges = StepShape((SliceShape(3, 8, 4), SliceShape(2, 20, 12)), 5)
        cache = model.new_cache(NUM_CELLS, dtypes.F16)
        executable = model.compile(ranges, cache)
        found = executable.run(batch).copy()
        expected = step(model, model.new_cache(NUM_CELLS, dtypes.F16), batch)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_what_cannot_work_is_refused(ggml: GgmlBackend, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf")  # heads of 16 dimensions
    with loaded(ggml, path) as model, pytest.raises(BackendError, match="multiple of 32"):
        model.new_cache(32, dtypes.Q8_0)
    with pytest.raises(UsageError, match="threads"):
        GgmlBackend(GgmlOptions(num_threads=100_000))
    with pytest.raises(UsageError, match="poll"):
        GgmlBackend(GgmlOptions(poll=101))
    with pytest.raises(BackendError, match="there is no"):
        GgmlBackend(folder=tmp_path)


def test_a_type_without_kernel_is_refused(ggml: GgmlBackend, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", TinyModel())
    with GGUFFile.open(path) as file:
        config = config_from_metadata(file.metadata, file.tensors)
        tensors = dict(file.tensors)
        info = tensors["blk.0.attn_q.weight"]

        class Odd:
            shape, dtype = info.shape, dtypes.F64
            data = np.zeros(int(np.prod(info.shape)) * 8, np.uint8)

        tensors["blk.0.attn_q.weight"] = Odd()
        with pytest.raises(UnsupportedModelError, match=r"blk\.0\.attn_q\.weight"):
            ggml.load(config, build_graph(config), tensors)


def test_without_logits_the_output_layer_is_left_out(ggml: GgmlBackend, tmp_path: Path) -> None:
    batch = batch_of(Tokens([5, 6, 7], cells=[0, 1, 2]))
    with loaded(ggml, write_tiny_model(tmp_path / "tiny.gguf")) as model:
        cache = model.new_cache(NUM_CELLS, dtypes.F32)
        whole = model.compile(shape_of(batch, NUM_CELLS), cache)
        whole.run(batch)
        expected = whole.observed()[HIDDEN].copy()
        short = model.compile(shape_of(batch, NUM_CELLS)._replace(has_logits=False), cache)
        short.run(batch)
        np.testing.assert_array_equal(short.observed()[HIDDEN], expected)
        weights = [[each.weight for each in step.profile(batch)] for step in (whole, short)]
        assert set(weights[0]) - set(weights[1]) == {"output.weight"}
        whole.close()
        short.close()
        cache.close()

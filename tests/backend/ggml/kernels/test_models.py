"""Models whose matrices our kernels multiply with, against the reference backend.

Activations are rounded to 8 bits, 32 of them to multiples of the largest / 127, which changes a
product of normal numbers by 0.5 %. Two layers and the output layer multiply nine times in a row:
independent errors add up to 1.5 %. A single token is seen to be off by twice that at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from batches import Tokens, batch_of, one_slice, shape_of
from kernel_calls import each_instruction_set
from powerserve.backend.base import (
    Backend,
    Batch,
    Cache,
    FloatArray,
    LoadedModel,
    SliceShape,
    StepShape,
    WeightTensor,
)
from powerserve.backend.ggml.backend import GgmlBackend, GgmlModel, GgmlOptions
from powerserve.backend.ggml.kernels.choice import KernelChoice
from powerserve.backend.ggml.kernels.locate import ENVIRONMENT_VARIABLE
from powerserve.backend.reference import ReferenceBackend
from powerserve.backend.reference.dequantise import dequantise
from powerserve.core import dtypes
from powerserve.graph import Graph
from powerserve.model.config import config_from_metadata
from powerserve.model.decoder import HIDDEN
from powerserve.model.registry import build_graph
from powerserve.storage.gguf import GGUFFile
from quantised import float_tensor
from tiny_models import TinyModel, write_tiny_model

NUM_CELLS = 128
ROUNDING = 0.04
SAME = 1e-5  # the same numbers, added in another order

VARIANTS = {
    "llama, Q4_0": TinyModel(dtype="Q4_0", head_dim=32),
    "llama, Q5_0, heads of 16": TinyModel(dtype="Q5_0"),
    "llama, Q4_1, YaRN, heads of 96": TinyModel(
        dtype="Q4_1", embed_dim=96, num_heads=3, num_kv_heads=1, head_dim=96, rope_scaling="yarn"
    ),
    "llama, Q8_0, tied": TinyModel(dtype="Q8_0", tied=True, head_dim=64),
    "llama, Q5_K, RoPE factors": TinyModel(
        dtype="Q5_K", embed_dim=256, ffn_dim=256, rope_factors=True
    ),
    "llama, Q6_K, eight heads share": TinyModel(
        dtype="Q6_K", embed_dim=256, ffn_dim=512, num_heads=8, num_kv_heads=1
    ),
    "qwen2, Q4_K": TinyModel("qwen2", dtype="Q4_K", embed_dim=256, ffn_dim=256),
    "qwen2, Q8_0, heads of 256": TinyModel(
        "qwen2", dtype="Q8_0", embed_dim=512, ffn_dim=96, num_heads=2, num_kv_heads=1
    ),
    "qwen3, Q5_1": TinyModel("qwen3", dtype="Q5_1"),
}


def ids(count: int, first: int = 3) -> list[int]:
    """Some tokens."""
    return [(first + 7 * index) % 300 for index in range(count)]


PROMPT = batch_of(Tokens(ids(40), cells=range(40)))
NEXT = batch_of(Tokens([9], cells=[40], context=range(40)))
TREE = Tokens(
    ids=[5, 6, 7, 8, 9],
    cells=[50, 43, 47, 60, 41],
    context=range(41),
    parents=[-1, 0, 0, 1, 2],
    positions=[41, 42, 42, 43, 43],
)
SEQUENCES = batch_of(
    TREE, Tokens(ids(1), cells=[70], context=range(41)), Tokens(ids(20), cells=range(80, 100))
)
STEPS = (PROMPT, NEXT, SEQUENCES)


@pytest.fixture(scope="module")
def backend(kernel_file: Path) -> Iterator[GgmlBackend]:
    """Our kernels for all that they can do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT_VARIABLE, str(kernel_file))
        backend = GgmlBackend(GgmlOptions(num_threads=2, kernels=KernelChoice.NATIVE))
        assert backend.kernels is not None
    yield backend
    backend.close()


@contextmanager
def loaded(
    backend: Backend, path: Path, changed: Mapping[str, WeightTensor] | None = None
) -> Iterator[LoadedModel]:
    """A model, some of whose weights may be replaced."""
    with GGUFFile.open(path) as file:
        config = config_from_metadata(file.metadata, file.tensors)
        graph = build_graph(config)
        model = backend.load(config, graph, {**file.tensors, **(changed or {})})
        yield model
        model.close()


def run(model: LoadedModel, *batches: Batch) -> list[FloatArray]:
    """The logits of steps one after another over a new cache."""
    cache = model.new_cache(NUM_CELLS, dtypes.F16)
    rows = [step(model, cache, batch) for batch in batches]
    cache.close()
    return rows


def step(
    model: LoadedModel, cache: Cache, batch: Batch, shape: StepShape | None = None
) -> FloatArray:
    """The logits of one step."""
    executable = model.compile(shape or shape_of(batch, NUM_CELLS), cache)
    logits = executable.run(batch).copy()
    executable.close()
    return logits


def expected(path: Path, *batches: Batch) -> list[FloatArray]:
    """What the reference backend makes of them."""
    with loaded(ReferenceBackend(), path) as model:
        return run(model, *batches)


def relative_error(found: FloatArray, wanted: FloatArray) -> float:
    """The length of the difference, as a part of the length of what was wanted."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def assert_close(found: Sequence[FloatArray], wanted: Sequence[FloatArray]) -> None:
    """Steps' logits differ by no more than rounded activations explain."""
    errors = [relative_error(*each) for each in zip(found, wanted, strict=True)]
    assert max(errors) < ROUNDING, errors


@pytest.mark.parametrize("name", VARIANTS)
def test_models_agree_with_the_reference(backend: GgmlBackend, tmp_path: Path, name: str) -> None:
    """A prompt, an answer's token, and a step of a tree, a sequence beside it and a new prompt."""
    path = write_tiny_model(tmp_path / "tiny.gguf", VARIANTS[name])
    with loaded(backend, path) as model:
        assert isinstance(model, GgmlModel)
        assert set(model.weights.buffer_sizes) == {"kernels", "CPU"}  # no matrix is ggml's
        assert_close(run(model, *STEPS), expected(path, *STEPS))


def test_every_instruction_set_serves_a_model(backend: GgmlBackend, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", VARIANTS["llama, Q8_0, tied"])
    wanted = expected(path, *STEPS)
    kernels = backend.kernels
    assert kernels is not None
    with loaded(backend, path) as model:
        for _ in each_instruction_set(kernels):
            assert_close(run(model, *STEPS), wanted)


@pytest.mark.parametrize("sizes", [(1,) * 40, (2,) * 20, (3, 4, 33), (16, 8, 16), (39, 1)], ids=str)
def test_a_prompt_in_pieces_is_the_prompt(
    backend: GgmlBackend, tmp_path: Path, sizes: tuple[int, ...]
) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", VARIANTS["qwen2, Q4_K"])
    starts = np.cumsum((0, *sizes[:-1])).tolist()
    tokens = ids(40)
    pieces = [
        batch_of(Tokens(tokens[start : start + size], range(start, start + size), range(start)))
        for start, size in zip(starts, sizes, strict=True)
    ]
    with loaded(backend, path) as model:
        assert_close([np.concatenate(run(model, *pieces))], expected(path, PROMPT))


def test_sequences_of_a_step_do_not_see_each_other(backend: GgmlBackend, tmp_path: Path) -> None:
    """Together they may be multiplied as another kind of number: not exactly, but nearly."""
    path = write_tiny_model(tmp_path / "tiny.gguf", VARIANTS["llama, Q4_0"])
    one, two = Tokens(ids(2), cells=[0, 2]), Tokens(ids(2, first=9), cells=[1, 3])
    with loaded(backend, path) as model:
        together = run(model, batch_of(one, two))
        apart = run(model, batch_of(one)), run(model, batch_of(two))
    assert relative_error(together[0], np.concatenate([each[0] for each in apart])) < SAME


def test_ranges_of_cells_may_begin_anywhere(backend: GgmlBackend, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", VARIANTS["llama, Q4_0"])
    one, two = Tokens(ids(3), cells=[8, 9, 10]), Tokens(ids(2), cells=[121, 120])
    batch = batch_of(one, two)
    shape = StepShape((SliceShape(3, 8, 4), SliceShape(2, 100, 28)), 5)
    with loaded(backend, path) as model:
        found = step(model, model.new_cache(NUM_CELLS, dtypes.F16), batch, shape)
        assert relative_error(found, run(model, batch)[0]) < SAME


def test_a_padded_step_is_the_same(backend: GgmlBackend, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", VARIANTS["llama, Q4_0"])
    batch = batch_of(Tokens(ids(5), cells=range(5)))
    with loaded(backend, path) as model:
        cache = model.new_cache(NUM_CELLS, dtypes.F16)
        assert_close([step(model, cache, batch, one_slice(8, 64, 8))], expected(path, batch))
        after = batch_of(Tokens([9], cells=[5], context=range(5)))
        assert_close([step(model, cache, after)], expected(path, batch, after)[1:])


def test_without_logits_the_rest_is_computed(backend: GgmlBackend, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", VARIANTS["llama, Q4_0"])
    with loaded(backend, path) as model:
        cache = model.new_cache(NUM_CELLS, dtypes.F16)
        shape = shape_of(PROMPT, NUM_CELLS)
        hidden = []
        for has_logits in (True, False):
            executable = model.compile(shape._replace(has_logits=has_logits), cache)
            executable.run(PROMPT)
            hidden.append(executable.observed()[HIDDEN].copy())
            executable.close()
        np.testing.assert_array_equal(*hidden)
        assert_close([step(model, cache, NEXT)], expected(path, PROMPT, NEXT)[1:])


@pytest.mark.parametrize("dtype", [dtypes.F32, dtypes.Q8_0])
def test_caches_that_only_ggml_reads(
    backend: GgmlBackend, tmp_path: Path, dtype: dtypes.DType
) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", VARIANTS["llama, Q4_0"])
    with loaded(backend, path) as model:
        cache = model.new_cache(NUM_CELLS, dtype)
        assert_close([step(model, cache, batch) for batch in STEPS], expected(path, *STEPS))


def test_cells_that_nobody_sees_may_hold_anything(backend: GgmlBackend, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", VARIANTS["llama, Q4_0"])
    with loaded(backend, path) as model:
        clean = run(model, *STEPS)
        cache = model.new_cache(NUM_CELLS, dtypes.F16)
        everything = np.arange(NUM_CELLS)
        size = len(cache.save(everything))
        for number in (np.nan, np.inf, -60000):
            cache.restore(everything, np.full(size // 2, number, np.float16).tobytes())
            for batch, wanted in zip(STEPS, clean, strict=True):
                np.testing.assert_array_equal(step(model, cache, batch), wanted)


PARTS = ("attn_q", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "output")


@pytest.mark.parametrize("parts", [*[(part,) for part in PARTS], PARTS[::2], PARTS], ids="+".join)
def test_matrices_without_kernels_are_left_to_ggml(
    backend: GgmlBackend, tmp_path: Path, parts: tuple[str, ...]
) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", VARIANTS["qwen3, Q5_1"])
    with GGUFFile.open(path) as file:
        changed = {
            name: float_tensor(dequantise(tensor), dtypes.F32)
            for name, tensor in file.tensors.items()
            if name.removesuffix(".weight").rpartition(".")[2] in parts
        }
    with loaded(backend, path, changed) as model:
        assert isinstance(model, GgmlModel)
        assert model.weights.buffer_sizes["kernels"] > 0
        assert_close(run(model, *STEPS), expected(path, *STEPS))


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_any_value_can_be_observed(backend: GgmlBackend, tmp_path: Path, architecture: str) -> None:
    """It is not overwritten by what comes after it."""
    model = TinyModel(architecture, dtype="Q8_0", head_dim=32, num_layers=1)
    path = write_tiny_model(tmp_path / "tiny.gguf", model)
    with GGUFFile.open(path) as file:
        config = config_from_metadata(file.metadata, file.tensors)
        wanted = observed(ReferenceBackend(), file, range(len(build_graph(config).nodes)))
        for index, values in wanted.items():
            found = observed(backend, file, [index])[index]
            assert relative_error(found, values) < ROUNDING, build_graph(config).nodes[index]


def observed(
    backend: Backend, file: GGUFFile, indices: Sequence[int] | range
) -> dict[int, FloatArray]:
    """The values that some nodes of a model's graph have after a prompt."""
    config = config_from_metadata(file.metadata, file.tensors)
    graph: Graph = build_graph(config)
    graph.observed = {str(index): graph.nodes[index].output for index in indices}
    model = backend.load(config, graph, file.tensors)
    cache = model.new_cache(NUM_CELLS, dtypes.F16)
    executable = model.compile(shape_of(PROMPT, NUM_CELLS), cache)
    executable.run(PROMPT)
    values = {int(name): value.ravel().copy() for name, value in executable.observed().items()}
    executable.close()
    cache.close()
    model.close()
    return values

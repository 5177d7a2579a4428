"""The host's part of the NPU backend against the numpy reference, over a stand-in for the NPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from batches import Tokens, batch_of, shape_of
from powerserve.backend.base import Batch, Cache, StepInterrupted, StepShape, Weights
from powerserve.backend.ggml.backend import GgmlBackend, GgmlOptions
from powerserve.backend.qnn.backend import QnnBackend, QnnModel
from powerserve.backend.qnn.splitting import Run, split
from powerserve.backend.reference import ReferenceBackend
from powerserve.core import dtypes
from powerserve.core.errors import (
    BackendError,
    ConfigError,
    MemoryLimitError,
    ModelFileError,
    UnsupportedModelError,
)
from powerserve.graph.observe import observe_inputs
from powerserve.model.config import config_from_metadata
from powerserve.model.decoder import HIDDEN
from powerserve.model.registry import build_graph
from powerserve.storage.gguf import GGUFFile
from reference_runtime import ReferenceRuntime, npu_folder
from tiny_models import TinyModel, write_tiny_model

NUM_CELLS = 64
ANY_SHAPE = StepShape((), 0)
VARIANTS = {
    "llama": TinyModel(),
    "llama-tied": TinyModel(tied=True, dtype="Q8_0"),
    "llama-factors": TinyModel(rope_factors=True, rope_scaling="yarn", dtype="F16"),
    "qwen2": TinyModel("qwen2", dtype="BF16"),
    "qwen3": TinyModel("qwen3", head_dim=16, num_layers=3, dtype="Q4_0"),
}


@pytest.fixture(scope="module")
def host() -> Iterator[GgmlBackend]:
    backend = GgmlBackend(GgmlOptions(num_threads=1))
    yield backend
    backend.close()


@pytest.fixture(params=VARIANTS)
def gguf(request: pytest.FixtureRequest, tmp_path: Path) -> GGUFFile:
    return GGUFFile.open(write_tiny_model(tmp_path / "tiny.gguf", VARIANTS[request.param]))


@pytest.fixture
def llama(tmp_path: Path) -> GGUFFile:
    return GGUFFile.open(write_tiny_model(tmp_path / "llama.gguf"))


Load = Callable[..., QnnModel]


@pytest.fixture
def load(host: GgmlBackend, tmp_path: Path) -> Iterator[Load]:
    """Load a file into the NPU backend; keywords go to `npu_folder`.

    `weights` are those of the compiled graphs, if the file has not all of them.
    """
    models: list[QnnModel] = []

    def load(file: GGUFFile, weights: Weights | None = None, **changes: object) -> QnnModel:
        weights = weights or file.tensors
        config = config_from_metadata(file.metadata, weights)
        graph = build_graph(config)
        folder = npu_folder(tmp_path / "qnn", config, **changes)  # type: ignore[arg-type]
        backend = QnnBackend(folder, ReferenceRuntime(config, graph, weights), host)
        models.append(backend.load(config, graph, file.tensors))
        return models[-1]

    yield load
    for model in models:
        model.close()


def reference_logits(file: GGUFFile, *batches: Batch) -> np.ndarray:
    config = config_from_metadata(file.metadata, file.tensors)
    model = ReferenceBackend().load(config, build_graph(config), file.tensors)
    cache = model.new_cache(NUM_CELLS, dtypes.F16)
    return np.concatenate(
        [model.compile(shape_of(batch, NUM_CELLS), cache).run(batch) for batch in batches]
    )


def logits(model: QnnModel, *batches: Batch, cache: Cache | None = None) -> np.ndarray:
    cache = cache or model.new_cache(NUM_CELLS, dtypes.F16)
    return np.concatenate([model.compile(ANY_SHAPE, cache).run(each).copy() for each in batches])


def assert_close(found: np.ndarray, expected: np.ndarray, relative: float = 2e-3) -> None:
    """float16 K and V may round the other way where the order of a sum differs."""
    assert found.shape == expected.shape
    assert (
        np.linalg.norm(found - expected, axis=1).max()
        < relative * np.linalg.norm(expected, axis=1).min()
    )


def steps_of_all_kinds() -> list[Batch]:
    """Two sequences, a chunk longer than any graph, a decoding token, and trees."""
    prompt = Tokens(range(10, 40), cells=range(5, 35))  # 30 tokens: three runs of 12
    other = Tokens([3, 4, 5], cells=[60, 2, 41])
    tree = Tokens(
        range(50, 65),  # 15 nodes, so that some have ancestors in an earlier run
        cells=[36, 35, 0, 1, 3, 63, 62, 61, 37, 38, 39, 4, 43, 44, 45],
        context=range(5, 35),
        parents=[-1, 0, 0, 1, 2, 2, 3, -1, 7, 8, 9, 10, 11, 12, 3],
        positions=[30, 31, 31, 32, 32, 32, 33, 30, 31, 32, 33, 34, 35, 36, 33],
    )
    token = Tokens([7], cells=[50], context=[60, 2, 41])
    return [batch_of(prompt, output_rows=[11, 12, 29]), batch_of(other), batch_of(token, tree)]


@pytest.mark.parametrize("chunk_ends", [(), (1, 2)], ids=["whole", "chunks"])
@pytest.mark.parametrize("lm_head", [True, False], ids=["npu-head", "cpu-head"])
def test_logits_are_those_of_the_reference(
    gguf: GGUFFile, load: Load, chunk_ends: tuple[int, ...], lm_head: bool
) -> None:
    num_layers = config_from_metadata(gguf.metadata, gguf.tensors).num_layers
    ends = (*chunk_ends[:-1], num_layers) if chunk_ends else ()
    model = load(gguf, chunk_ends=ends, lm_head=lm_head)
    batches = steps_of_all_kinds()
    # ggml rounds the activations to the type of the weights, or near it.
    rounds = not lm_head and gguf.tensors["token_embd.weight"].dtype != dtypes.F32
    relative = 0.05 if rounds else 2e-3
    assert_close(logits(model, *batches), reference_logits(gguf, *batches), relative)


@pytest.mark.parametrize("mask_value", [-100.0, -1e5])  # the latter is -inf in float16
def test_the_folders_mask_value_hides(llama: GGUFFile, load: Load, mask_value: float) -> None:
    batches = steps_of_all_kinds()
    model = load(llama, mask_value=mask_value, batch_sizes=(1, 8))
    assert_close(logits(model, *batches), reference_logits(llama, *batches))


def test_ancestors_of_earlier_steps_are_seen(llama: GGUFFile, load: Load) -> None:
    first = batch_of(Tokens([3, 4], cells=[9, 4]))
    level = batch_of(
        Tokens([5, 6], cells=[7, 20], context=[9, 4], parents=[-1, -1], positions=[2, 2])
    )
    deeper = batch_of(
        Tokens([8, 9], cells=[11, 12], context=[9, 4], parents=[-1, -1], positions=[3, 3])
    )
    piece = replace(deeper.slices[0], cached_ancestors=np.array([[7], [20]]), stop_cell=21)
    deepest = batch_of(Tokens([10], cells=[13], context=[9, 4], positions=[4]))
    alone = replace(deepest.slices[0], cached_ancestors=np.array([[20, 12]]), stop_cell=21)
    batches = [first, level, replace(deeper, slices=[piece]), replace(deepest, slices=[alone])]
    assert_close(logits(load(llama), *batches), reference_logits(llama, *batches))


def test_steps_use_the_smallest_graph_that_fits() -> None:
    sizes = [1, 8, 12]
    assert list(split(1, sizes)) == [Run(0, 1, 1)]
    assert list(split(9, sizes)) == [Run(0, 9, 12)]
    assert list(split(26, sizes)) == [Run(0, 12, 12), Run(12, 24, 12), Run(24, 26, 8)]


def test_cells_can_be_copied_saved_and_restored(llama: GGUFFile, load: Load) -> None:
    model = load(llama, chunk_ends=(1, 2))
    prompt = batch_of(Tokens([3, 4, 5, 6], cells=[9, 4, 30, 2]))
    follow = batch_of(Tokens([7, 8], cells=[20, 21], context=[4, 9, 31, 3]))
    expected = reference_logits(llama, prompt, batch_of(Tokens([7, 8], [20, 21], [9, 4, 30, 2])))
    cache = model.new_cache(NUM_CELLS, dtypes.F16)
    logits(model, prompt, cache=cache)
    saved = cache.save(np.array([9, 4]))
    cache.copy(np.array([9, 4, 30, 2]), np.array([4, 9, 31, 3]))  # two of them change places
    assert_close(logits(model, follow, cache=cache), expected[4:])

    cache.restore(np.array([50, 51]), saved)
    elsewhere = batch_of(Tokens([7, 8], cells=[20, 21], context=[50, 51, 30, 2]))
    assert_close(logits(model, elsewhere, cache=cache), expected[4:])
    assert len(saved) * NUM_CELLS == 2 * cache.size_bytes
    with pytest.raises(BackendError, match="do not hold 3 cells"):
        cache.restore(np.array([1, 2, 3]), saved)


def test_a_new_cache_is_empty(llama: GGUFFile, load: Load) -> None:
    model = load(llama)
    cache = model.new_cache(NUM_CELLS, dtypes.F16)
    logits(model, batch_of(Tokens([3, 4], cells=[0, 1])), cache=cache)
    assert any(model.new_cache(NUM_CELLS, dtypes.F16).save(np.arange(NUM_CELLS))) is False


def test_the_hidden_states_can_be_observed(llama: GGUFFile, load: Load) -> None:
    model = load(llama)
    batch = steps_of_all_kinds()[0]
    executable = model.compile(ANY_SHAPE, model.new_cache(NUM_CELLS, dtypes.F16))
    executable.run(batch)
    config = config_from_metadata(llama.metadata, llama.tensors)
    reference = ReferenceBackend().load(config, build_graph(config), llama.tensors)
    expected = reference.compile(
        shape_of(batch, NUM_CELLS), reference.new_cache(NUM_CELLS, dtypes.F16)
    )
    expected.run(batch)
    assert_close(executable.observed()[HIDDEN], expected.observed()[HIDDEN])


def test_with_an_lm_head_the_file_may_have_embeddings_only(llama: GGUFFile, load: Load) -> None:
    batch = steps_of_all_kinds()[0]
    expected = reference_logits(llama, batch)
    complete = dict(llama.tensors)
    llama.tensors = {"token_embd.weight": complete["token_embd.weight"]}
    model = load(llama, weights=complete)
    executable = model.compile(ANY_SHAPE, model.new_cache(NUM_CELLS, dtypes.F16))
    assert_close(executable.run(batch), expected)
    with pytest.raises(BackendError, match=r"no output_norm\.weight, so texts cannot be embedded"):
        executable.observed()
    with pytest.raises(ModelFileError, match=r"no tensor output_norm\.weight"):
        load(llama, weights=complete, lm_head=False)


def test_a_profile_names_every_part_of_a_step(llama: GGUFFile, load: Load) -> None:
    model = load(llama, chunk_ends=(1, 2))
    executable = model.compile(ANY_SHAPE, model.new_cache(NUM_CELLS, dtypes.F16))
    times = executable.profile(batch_of(Tokens([3, 4], cells=[0, 1])))
    names = [each.operation for each in times]
    assert names == [
        "embedding",
        "positions and mask",
        "layers 0 to 0, batch 8",
        "cache",
        "layers 1 to 1, batch 8",
        "output layer",
    ]
    assert all(each.seconds >= 0 for each in times)


def test_an_interrupt_stops_steps_until_resumed(
    llama: GGUFFile, host: GgmlBackend, tmp_path: Path
) -> None:
    config = config_from_metadata(llama.metadata, llama.tensors)
    graph = build_graph(config)
    runtime = ReferenceRuntime(config, graph, llama.tensors)
    backend = QnnBackend(npu_folder(tmp_path / "qnn", config), runtime, host)
    model = backend.load(config, graph, llama.tensors)
    executable = model.compile(ANY_SHAPE, model.new_cache(NUM_CELLS, dtypes.F16))
    batch = batch_of(Tokens([3, 4], cells=[0, 1]))
    backend.interrupt()
    with pytest.raises(StepInterrupted):
        executable.run(batch)
    backend.resume()
    assert_close(executable.run(batch), reference_logits(llama, batch))


def test_what_cannot_be_had_is_said(llama: GGUFFile, load: Load) -> None:
    model = load(llama)
    with pytest.raises(BackendError, match="F16, not Q8_0"):
        model.new_cache(NUM_CELLS, dtypes.Q8_0)
    with pytest.raises(MemoryLimitError, match="compiled for a cache of 64 tokens, not 65"):
        model.new_cache(65, dtypes.F16)
    with pytest.raises(ConfigError, match="holds 1 layers, but the model has 2"):
        load(llama, chunk_ends=(1,))


def test_inside_the_layers_nothing_can_be_observed(
    llama: GGUFFile, host: GgmlBackend, tmp_path: Path
) -> None:
    config = config_from_metadata(llama.metadata, llama.tensors)
    graph = build_graph(config)
    runtime = ReferenceRuntime(config, graph, llama.tensors)
    backend = QnnBackend(npu_folder(tmp_path / "qnn", config), runtime, host)
    with pytest.raises(UnsupportedModelError, match="--no-qnn"):
        backend.load(config, observe_inputs(graph), llama.tensors)

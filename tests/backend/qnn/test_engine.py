"""The engine over the NPU backend gives the tokens it gives over the reference backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from powerserve.backend.base import FloatArray, LoadedModel
from powerserve.backend.ggml.backend import GgmlBackend, GgmlOptions
from powerserve.backend.qnn.backend import QnnBackend, QnnModel
from powerserve.backend.qnn.config_file import KV_PATH_FORMAT
from powerserve.backend.qnn.options import SystemPromptUse
from powerserve.backend.reference import ReferenceBackend
from powerserve.core import dtypes
from powerserve.core.errors import ConfigError
from powerserve.engine.embedding import TextEmbedding
from powerserve.engine.engine import Engine
from powerserve.engine.sequence import Sequence as EngineSequence
from powerserve.model.config import config_from_metadata
from powerserve.model.registry import build_graph
from powerserve.sampler.params import SamplingParams
from powerserve.speculative.options import SpeculationMode, SpeculationOptions
from powerserve.storage.gguf import GGUFFile
from reference_runtime import ReferenceRuntime, npu_folder
from tiny_models import TinyModel, write_tiny_model
from trees import engine_with, finish, speculator_for

GREEDY = SamplingParams(temperature=0, max_tokens=14, ignore_eos=True)
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9], [2, 7, 1], [1, 4, 1, 4, 2, 1, 3]]
SYSTEM = [20, 30, 40, 50, 60]


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    path = tmp_path_factory.mktemp("model") / f"{request.param}.gguf"
    return GGUFFile.open(write_tiny_model(path, TinyModel(request.param, seed=4)))


@pytest.fixture(scope="module")
def host() -> Iterator[GgmlBackend]:
    backend = GgmlBackend(GgmlOptions(num_threads=1))
    yield backend
    backend.close()


@pytest.fixture
def reference(file: GGUFFile) -> LoadedModel:
    config = config_from_metadata(file.metadata, file.tensors)
    return ReferenceBackend().load(config, build_graph(config), file.tensors)


Load = Callable[..., QnnModel]


@pytest.fixture
def load(file: GGUFFile, host: GgmlBackend, tmp_path: Path) -> Load:
    """Load the file into the NPU backend; further keywords go to `npu_folder`."""
    config = config_from_metadata(file.metadata, file.tensors)
    graph = build_graph(config)

    def load(use: SystemPromptUse = SystemPromptUse.AUTO, **changes: object) -> QnnModel:
        folder = npu_folder(tmp_path / "qnn", config, **changes)  # type: ignore[arg-type]
        runtime = ReferenceRuntime(config, graph, file.tensors)
        backend = QnnBackend(folder, runtime, host, use)
        return backend.load(config, graph, file.tensors)

    return load


def engine_on(model: LoadedModel, **changes: object) -> Engine:
    settings = {"context_size": 60, "num_cells": 60, "kv_dtype": dtypes.F16} | changes
    return engine_with(model, None, **settings)


def answers(
    engine: Engine, prompts: Sequence[list[int]], params: SamplingParams = GREEDY
) -> list[list[int]]:
    sequences = [engine.add(prompt, params) for prompt in prompts]
    finish(engine)
    return [sequence.generated_ids.tolist() for sequence in sequences]


def test_one_after_another(reference: LoadedModel, load: Load) -> None:
    expected, found = engine_on(reference), engine_on(load(chunk_ends=(1, 2)))
    for prompt in PROMPTS:
        assert answers(found, [prompt]) == answers(expected, [prompt])


def test_together_and_with_too_few_cells(reference: LoadedModel, load: Load) -> None:
    """44 cells hold two of the sequences, so that some are computed again."""
    alone = [answers(engine_on(reference), [prompt])[0] for prompt in PROMPTS]
    model = load(cache_size=44)
    engine = engine_on(model, context_size=44, num_cells=44)
    assert engine.cache_use.num_cells == 44  # not rounded up to a block
    assert answers(engine, PROMPTS) == alone


def test_prefixes_are_used_again(reference: LoadedModel, load: Load) -> None:
    engine = engine_on(load())
    first = answers(engine, [PROMPTS[0]])[0]
    longer = [*PROMPTS[0], *first[:4], 77]
    sequence = engine.add(longer, GREEDY)
    finish(engine)
    assert sequence.num_cached_tokens == len(longer) - 1
    assert sequence.generated_ids.tolist() == answers(engine_on(reference), [longer])[0]


@pytest.mark.parametrize("mode", [SpeculationMode.SUFFIX, SpeculationMode.DRAFT])
def test_speculation_changes_nothing(
    reference: LoadedModel, load: Load, mode: SpeculationMode
) -> None:
    model = load(cache_size=128)
    options = SpeculationOptions(mode=mode)
    draft = reference if mode is SpeculationMode.DRAFT else None
    speculator = speculator_for(model, options, draft)
    engine = engine_with(model, speculator, context_size=100, num_cells=128, kv_dtype=dtypes.F16)
    repetitive = [7, 8, 9, 10] * 4
    params = GREEDY.replace(max_tokens=24)
    plain = engine_on(reference, context_size=100, num_cells=128)
    prompts = [repetitive, PROMPTS[0]]
    sequences = [engine.add(prompt, params) for prompt in prompts]
    finish(engine)
    assert [s.generated_ids.tolist() for s in sequences] == answers(plain, prompts, params)
    if mode is SpeculationMode.DRAFT:
        assert sum(accepted(sequence) for sequence in sequences) > 10  # it guesses with the truth


def accepted(sequence: EngineSequence) -> int:
    assert sequence.speculation is not None
    return sequence.speculation.counters.num_accepted_tokens


def test_an_npu_model_can_be_the_draft(reference: LoadedModel, load: Load) -> None:
    draft = load(cache_size=128)
    speculator = speculator_for(reference, SpeculationOptions(mode=SpeculationMode.TREE), draft)
    engine = engine_with(reference, speculator, kv_dtype=dtypes.F16)
    sequence = engine.add(PROMPTS[0], GREEDY)
    finish(engine)
    plain = engine_on(reference)
    assert sequence.generated_ids.tolist() == answers(plain, [PROMPTS[0]])[0]
    assert accepted(sequence) > 5


def with_system_prompt(load: Load, tmp_path: Path, use: SystemPromptUse, **changes: object) -> Load:
    """Compute the K and V of SYSTEM, write them as the original does, and load anew."""
    model = load(**changes)
    engine = engine_on(model)
    answers(engine, [[*SYSTEM, 1]], GREEDY.replace(max_tokens=1))
    content = engine._cache.save(np.arange(len(SYSTEM)))
    config = model.config
    shape = (2, config.num_layers, config.num_kv_heads, len(SYSTEM), config.head_dim)
    cells = np.frombuffer(content, np.float16).reshape(shape)
    (tmp_path / "qnn" / "kv").mkdir()
    for kind, layer, head in np.ndindex(*shape[:3]):
        name = KV_PATH_FORMAT.format(layer_id=layer, kv_type=("key", "value")[kind], head_id=head)
        (tmp_path / "qnn" / name).write_bytes(cells[kind, layer, head].astype("<f4").tobytes())
    return load


def test_the_system_prompt_is_a_prefix(reference: LoadedModel, load: Load, tmp_path: Path) -> None:
    with_system_prompt(load, tmp_path, SystemPromptUse.AUTO)
    engine = engine_on(load(system_tokens=tuple(SYSTEM), kv_size=len(SYSTEM)))
    prompts = [[*SYSTEM, *PROMPTS[1]], PROMPTS[2], [*SYSTEM[:3], 9]]
    cached = []
    for prompt in prompts * 2:
        sequence = engine.add(prompt, GREEDY)
        finish(engine)
        cached.append(sequence.num_cached_tokens)
        assert sequence.generated_ids.tolist() == answers(engine_on(reference), [prompt])[0]
        engine.clear_prefixes()  # it stays
    assert cached == [5, 0, 3] * 2


def test_the_system_prompt_gives_way_to_a_long_prompt(load: Load, tmp_path: Path) -> None:
    with_system_prompt(load, tmp_path, SystemPromptUse.AUTO)
    engine = engine_on(load(system_tokens=tuple(SYSTEM), kv_size=len(SYSTEM), cache_size=60))
    long = [each % 200 for each in range(58)]
    assert len(answers(engine, [long], GREEDY.replace(max_tokens=2))[0]) == 2


def test_the_system_prompt_stands_before_everything(
    reference: LoadedModel, load: Load, tmp_path: Path
) -> None:
    """As in the original: nobody sees its tokens, and positions count from its end."""
    with_system_prompt(load, tmp_path, SystemPromptUse.USE)
    model = load(SystemPromptUse.USE, kv_size=len(SYSTEM))
    assert model.capabilities.max_cells == 64 - len(SYSTEM)
    engine = engine_on(model, context_size=59, num_cells=59)
    together = answers(engine, PROMPTS)
    behind = [answers(engine_on(reference), [[*SYSTEM, *prompt]])[0] for prompt in PROMPTS]
    assert together == behind


def test_the_system_prompt_can_be_ignored(
    reference: LoadedModel, load: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with_system_prompt(load, tmp_path, SystemPromptUse.IGNORE)
    for use in (SystemPromptUse.IGNORE, SystemPromptUse.AUTO):
        engine = engine_on(load(use, kv_size=len(SYSTEM)))  # whose tokens nobody knows
        assert answers(engine, PROMPTS[:1]) == answers(engine_on(reference), PROMPTS[:1])
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'qnn'} has the K and V of a system prompt, but not its tokens: they are left "
        "out; `--qnn-system-kv use` puts them before every prompt"
    ]


def test_missing_or_wrong_system_prompt_files_are_named(load: Load, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"layer_0_key_0.raw cannot be read.* of 5 tokens"):
        load(system_tokens=tuple(SYSTEM), kv_size=len(SYSTEM))
    with_system_prompt(load, tmp_path, SystemPromptUse.AUTO)
    (tmp_path / "qnn" / "kv" / "layer_1_value_1.raw").write_bytes(b"123")
    with pytest.raises(ConfigError, match=r"layer_1_value_1.raw has 3 bytes, but 5 tokens .* 320"):
        load(system_tokens=tuple(SYSTEM), kv_size=len(SYSTEM))


def test_a_text_is_embedded_while_an_answer_goes_on(reference: LoadedModel, load: Load) -> None:
    """Both have a cache, but the graphs have one set of buffers."""
    model = load()
    engine = engine_on(model)
    sequence = engine.add(PROMPTS[0], GREEDY)
    engine.step()
    vectors = [embed(each, PROMPTS[1]) for each in (model, reference)]
    finish(engine)
    assert vectors[0] @ vectors[1] > 0.9999
    assert sequence.generated_ids.tolist() == answers(engine_on(reference), PROMPTS[:1])[0]


def embed(model: LoadedModel, token_ids: list[int]) -> FloatArray:
    job = TextEmbedding(model, token_ids, dtypes.F16)
    vector = job.advance()
    job.close()
    assert vector is not None
    return vector

"""Batches of any size find a compiled graph, and few graphs are compiled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from batches import Tokens, batch_of, one_slice
from powerserve.backend.base import Cache, Executable, LoadedModel, StepShape
from powerserve.backend.ggml.backend import GgmlBackend, GgmlOptions
from powerserve.core import dtypes
from powerserve.executor.executor import MAX_EXECUTABLES, Executor, round_tokens
from powerserve.model.config import config_from_metadata
from powerserve.model.registry import build_graph
from powerserve.storage.gguf import GGUFFile
from tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedModel]:
    path = write_tiny_model(Path(tmp_path_factory.mktemp("model")) / "tiny.gguf")
    backend = GgmlBackend(GgmlOptions(num_threads=1))
    with GGUFFile.open(path) as file:
        config = config_from_metadata(file.metadata, file.tensors)
        loaded = backend.load(config, build_graph(config), file.tensors)
    yield loaded
    loaded.close()
    backend.close()


def test_token_counts_are_rounded_to_the_row_tile_where_that_is_cheap() -> None:
    counts = (1, 2, 8, 9, 12, 13, 32, 33, 511)
    assert [round_tokens(count) for count in counts] == [1, 2, 8, 12, 12, 16, 32, 33, 511]


def test_padding_does_not_change_the_logits(model: LoadedModel) -> None:
    """Eleven tokens run under a graph for twelve; the cache must be right as well."""
    ids = list(range(3, 14))
    executor = Executor(model, model.new_cache(512, dtypes.F16))
    padded = executor.run(batch_of(Tokens(ids, cells=list(range(11))))).copy()
    after = executor.run(batch_of(Tokens([5], cells=[11], context=list(range(11))))).copy()
    exact_cache = model.new_cache(512, dtypes.F16)
    exact = model.compile(one_slice(11, 256, 11), exact_cache)
    expected = exact.run(batch_of(Tokens(ids, cells=list(range(11))))).copy()
    np.testing.assert_allclose(padded, expected, rtol=1e-3, atol=1e-3)
    single = model.compile(one_slice(1, 256, 1), exact_cache)
    expected_after = single.run(batch_of(Tokens([5], cells=[11], context=list(range(11)))))
    np.testing.assert_allclose(after, expected_after, rtol=1e-3, atol=1e-3)


def test_graphs_are_used_again_and_their_number_is_bounded(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[StepShape] = []
    original = type(model).compile

    def counting(self: LoadedModel, shape: StepShape, cache: Cache) -> Executable:
        compiled.append(shape)
        return original(self, shape, cache)

    monkeypatch.setattr(type(model), "compile", counting)
    executor = Executor(model, model.new_cache(512, dtypes.F16))
    for position in range(40):
        executor.run(batch_of(Tokens([3], cells=[position], context=list(range(position)))))
    assert len(compiled) == 1
    for count in range(33, 33 + 2 * MAX_EXECUTABLES):
        executor.run(batch_of(Tokens([3] * count, cells=list(range(count)))))
    assert len(executor._executables) == MAX_EXECUTABLES
    executor.close()
    assert not executor._executables

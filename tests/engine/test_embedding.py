"""Embeddings, by both backends and of the real model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from powerserve.backend.base import FloatArray
from powerserve.core import dtypes
from powerserve.core.errors import UsageError
from powerserve.engine.embedding import TextEmbedding
from powerserve.engine.loader import LoadedEngine, LoadOptions, load_engine
from powerserve.storage.resolve import resolve_model
from tiny_models import write_tiny_model

TOKENS = [(7 * index) % 290 for index in range(150)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def loaded(path: Path) -> Iterator[LoadedEngine]:
    engine = load_engine(resolve_model(path), LoadOptions(kv_dtype=dtypes.F32))
    yield engine
    engine.close()


def embedded(loaded: LoadedEngine, tokens: list[int]) -> FloatArray:
    embedding = TextEmbedding(loaded.model, tokens, dtypes.F32)
    try:
        while (vector := embedding.advance()) is None:
            pass
        return vector
    finally:
        embedding.close()


@pytest.mark.parametrize("length", [1, 7, 64, 65, 150])
def test_both_backends_agree(loaded: LoadedEngine, path: Path, length: int) -> None:
    reference = load_engine(resolve_model(path), LoadOptions(backend="reference"))
    expected = embedded(reference, TOKENS[:length])
    np.testing.assert_allclose(embedded(loaded, TOKENS[:length]), expected, atol=2e-3)
    reference.close()


def test_the_vector_has_length_one_and_tells_texts_apart(loaded: LoadedEngine) -> None:
    first, same, other = (embedded(loaded, tokens) for tokens in (TOKENS, TOKENS, TOKENS[::-1]))
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(first, same)
    assert first @ other < 0.9999


def test_the_real_model_finds_what_is_alike(smollm2: Path) -> None:
    engine = load_engine(resolve_model(smollm2), LoadOptions(context_size=256))
    texts = ("A cat sat on the mat.", "A kitten lay on the rug.", "Interest rates rose in May.")
    cat, kitten, rates = (embedded(engine, engine.tokenizer.encode(text)) for text in texts)
    engine.close()
    assert cat @ kitten > cat @ rates


@pytest.mark.parametrize("tokens", [[], [-1], [10**6]])
def test_texts_that_are_none_are_refused(loaded: LoadedEngine, tokens: list[int]) -> None:
    with pytest.raises(UsageError, match="text"):
        TextEmbedding(loaded.model, tokens, dtypes.F32)

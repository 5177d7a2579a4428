"""Scoring against llama.cpp's figures, and the original's perplexity protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from powerserve import LLM
from powerserve.core import dtypes
from powerserve.core.errors import UsageError
from powerserve.engine.loader import LoadOptions
from powerserve.evaluate.perplexity import running_perplexity
from powerserve.evaluate.scoring import batch_logits, token_nll

REFERENCE = Path(__file__).parents[1] / "reference" / "generation"


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[LLM]:
    with LLM(smollm2, LoadOptions(context_size=256)) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def golden() -> dict[str, list[float]]:
    data: dict[str, list[float]] = json.loads((REFERENCE / "smollm2-135m.json").read_text())
    return data


def test_smollm2_predicts_as_in_llama_cpp(llm: LLM, golden: dict[str, list[float]]) -> None:
    text = (REFERENCE / "text.txt").read_text()
    tokens = llm.loaded.tokenizer.encode(text, add_special=False)
    assert tokens == golden["tokens"]
    batches = batch_logits(llm.loaded.model, tokens, batch_size=128, kv_dtype=dtypes.F16)
    logits = np.concatenate([batch.copy() for batch in batches])
    nll = token_nll(logits, np.array(tokens[1:], np.int32))
    assert abs(nll.mean() - np.mean(golden["nll"])) < 0.02
    certain = np.array(golden["margin"]) > 1.0
    best = logits[: len(certain)].argmax(axis=1)
    assert (best[certain] == np.array(golden["top1"])[certain]).all()


def test_perplexity_counts_what_the_original_counts(
    llm: LLM, golden: dict[str, list[float]]
) -> None:
    tokens = [int(token) for token in golden["tokens"][: 20 * 8 + 3]]
    points = list(running_perplexity(llm.loaded.model, tokens, batch_size=8, kv_dtype=dtypes.F16))
    first = 17 * 8
    assert [point.num_tokens for point in points] == [8, 16, 23]  # the last token has no successor
    for point in points:
        expected = np.exp(np.mean(golden["nll"][first : first + point.num_tokens]))
        assert point.perplexity == pytest.approx(expected, rel=0.05)


def test_a_short_text_is_refused(llm: LLM) -> None:
    with pytest.raises(UsageError, match="at least 288"):
        list(running_perplexity(llm.loaded.model, [1] * 287, batch_size=16, kv_dtype=dtypes.F16))


def test_nll_of_a_known_distribution() -> None:
    logits = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]], np.float32))
    found = token_nll(logits, np.array([1, 2], np.int32))
    np.testing.assert_allclose(found, -np.log([0.5, 0.8]), rtol=1e-6)

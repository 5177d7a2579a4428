"""The real model with our kernels: it predicts as with ggml's and as in llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from powerserve import LLM, LoadOptions, SamplingParams
from powerserve.backend.ggml.backend import GgmlModel
from powerserve.backend.ggml.kernels.locate import ENVIRONMENT_VARIABLE
from powerserve.core import dtypes
from powerserve.evaluate.scoring import batch_logits, token_nll

GOLDEN = Path(__file__).parents[3] / "reference" / "generation" / "smollm2-135m.json"
GREEDY = SamplingParams(temperature=0, max_tokens=24)
CAPITAL = "The capital of France is"


@pytest.fixture(scope="module")
def golden() -> dict[str, list[float]]:
    data: dict[str, list[float]] = json.loads(GOLDEN.read_text())
    return data


@pytest.fixture(scope="module")
def native(smollm2: Path, kernel_file: Path) -> Iterator[LLM]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT_VARIABLE, str(kernel_file))
        llm = LLM(smollm2, LoadOptions(context_size=512, kernels="native"))
    with llm:
        yield llm


@pytest.fixture(scope="module")
def stock(smollm2: Path) -> Iterator[LLM]:
    with LLM(smollm2, LoadOptions(context_size=512, kernels="ggml")) as llm:
        yield llm


def nll_of(llm: LLM, tokens: list[int], batch_size: int) -> npt.NDArray[np.float64]:
    """Of each token but the first, when so many are computed at once."""
    model = llm.loaded.model
    batches = batch_logits(model, tokens, batch_size=batch_size, kv_dtype=dtypes.F16)
    logits = np.concatenate([batch.copy() for batch in batches])
    return token_nll(logits, np.array(tokens[1:], np.int32))


def test_all_matrices_are_packed(native: LLM, stock: LLM) -> None:
    model = native.loaded.model
    assert isinstance(model, GgmlModel)
    assert set(model.weights.buffer_sizes) == {"kernels", "CPU"}
    assert isinstance(stock.loaded.model, GgmlModel)
    assert "kernels" not in stock.loaded.model.weights.buffer_sizes


def test_text_is_as_likely_as_in_llama_cpp(
    native: LLM, stock: LLM, golden: dict[str, list[float]]
) -> None:
    tokens = [int(token) for token in golden["tokens"][:384]]
    found, ggml = nll_of(native, tokens, 128), nll_of(stock, tokens, 128)
    assert abs(found.mean() - np.mean(golden["nll"][: len(found)])) < 0.02
    assert abs(found.mean() - ggml.mean()) < 0.02


@pytest.mark.parametrize("batch_size", [1, 3, 8, 20])
def test_text_is_as_likely_in_small_steps(
    native: LLM, golden: dict[str, list[float]], batch_size: int
) -> None:
    """As answers and drafts are computed."""
    tokens = [int(token) for token in golden["tokens"][:96]]
    found = nll_of(native, tokens, batch_size)
    assert abs(found.mean() - np.mean(golden["nll"][: len(found)])) < 0.02


def test_answers_make_sense(native: LLM) -> None:
    """One alone, and two at once; counting invites drafts."""
    counting = "1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4,"
    assert native.generate(CAPITAL, GREEDY).text.startswith(" Paris")
    capital, numbers = native.generate_all([CAPITAL, counting], GREEDY)
    assert capital.text.startswith(" Paris")
    assert numbers.text.startswith(" 1, 2, 3, 4, 1, 2, 3, 4")


@pytest.mark.parametrize("batch_size", [2, 7, 23])
def test_small_steps_give_the_numbers_of_single_tokens(
    native: LLM, golden: dict[str, list[float]], batch_size: int
) -> None:
    """To the last bit, so that verifying guesses changes nothing."""
    tokens = [int(token) for token in golden["tokens"][:96]]
    assert (nll_of(native, tokens, batch_size) == nll_of(native, tokens, 1)).all()

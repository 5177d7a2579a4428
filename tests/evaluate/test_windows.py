"""Texts in windows: which tokens count, and the perplexity that llama.cpp finds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from powerserve import LLM
from powerserve.core.dtypes import F32
from powerserve.core.errors import UsageError
from powerserve.engine.loader import LoadOptions
from powerserve.evaluate.perplexity import window_perplexity
from powerserve.evaluate.scoring import StepSettings, batch_logits, window_logits
from powerserve.evaluate.windows import started_windows, text_windows
from powerserve.tokenizer.tokenizer import Tokenizer
from tiny_models import write_tiny_model

TEXT = (Path(__file__).parents[1] / "reference" / "generation" / "text.txt").read_text()
# llama-cpp-python 0.3.36 on this text and model: the sum of the NLL over five windows of 128
# tokens, each from an empty cache, of which the tokens 65 … 127 count.
LLAMA_CPP_NLL, LLAMA_CPP_TOKENS = 966.1916843828003, 315


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf")
    with LLM(path, LoadOptions(context_size=128)) as loaded:
        yield loaded


def test_perplexity_of_smollm2_is_that_of_llama_cpp(smollm2: Path) -> None:
    with LLM(smollm2, LoadOptions(context_size=128)) as llm:
        windows = text_windows(llm.loaded.tokenizer, TEXT, 128)
        points = list(window_perplexity(llm.loaded.model, windows, StepSettings()))
    assert len(points) == len(windows) == 5
    expected = math.exp(LLAMA_CPP_NLL / LLAMA_CPP_TOKENS)
    assert points[-1].value == pytest.approx(expected, rel=0.02)
    assert 0 < points[-1].error < points[0].error


@pytest.mark.parametrize("batch_size", [512, 16, 5])
@pytest.mark.parametrize("window", [16, 17])
def test_each_window_starts_anew_and_its_second_half_counts(
    tiny: LLM, window: int, batch_size: int
) -> None:
    model = tiny.loaded.model
    windows = text_windows(tiny.loaded.tokenizer, TEXT, window, 3)
    settings = StepSettings(batch_size, F32)
    pieces = [(t.tolist(), x.copy()) for t, x in window_logits(model, windows, settings)]
    targets = [token for tokens, _ in pieces for token in tokens]
    found = np.concatenate([rows for _, rows in pieces])
    first = window // 2
    assert targets == windows[:, first + 1 :].ravel().tolist()
    whole = [
        next(batch_logits(model, tokens, batch_size=window, kv_dtype=F32))[first:-1].copy()
        for tokens in windows
    ]
    np.testing.assert_allclose(found, np.concatenate(whole), atol=1e-3)


def test_an_incomplete_window_is_dropped(tiny: LLM) -> None:
    tokenizer = tiny.loaded.tokenizer
    tokens = tokenizer.encode(TEXT)
    windows = text_windows(tokenizer, TEXT, 100)
    assert windows.ravel().tolist() == tokens[: len(tokens) // 100 * 100]
    assert len(text_windows(tokenizer, TEXT, 100, 2)) == 2
    with pytest.raises(UsageError, match=r"one window has 100000; give a longer text"):
        text_windows(tokenizer, TEXT, 100_000)
    with pytest.raises(UsageError, match="a window of 3 tokens is too small"):
        text_windows(tokenizer, TEXT, 3)


def test_windows_start_as_the_model_wants_texts_to_start(tiny: LLM) -> None:
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", "b", "<s>"],
        "tokenizer.ggml.token_type": np.array([1, 1, 3], np.int32),
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
    }
    windows = np.array([[2, 0, 1], [0, 1, 1]], np.int32)
    started = started_windows(Tokenizer.from_metadata(metadata), windows)
    assert started.tolist() == [[2, 0, 1], [2, 1, 1]]
    assert windows[1, 0] == 0
    assert started_windows(tiny.loaded.tokenizer, windows) is windows

"""Scores of a prompt's tokens are those of teacher forcing, however the prompt was computed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from powerserve.backend.base import LoadedModel
from powerserve.core.dtypes import F16
from powerserve.core.errors import UsageError
from powerserve.engine.engine import Engine, EngineConfig
from powerserve.engine.sequence import FinishReason, Sequence
from powerserve.evaluate.scoring import batch_logits, token_nll
from powerserve.sampler.params import SamplingParams
from tiny_engine import run, tiny_ggml_model

ONLY_SCORES = SamplingParams(temperature=0, max_tokens=0, logprobs=2)
PROMPT = np.random.default_rng(3).integers(0, 250, 150).tolist()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedModel]:
    with tiny_ggml_model(tmp_path_factory.mktemp("model")) as loaded:
        yield loaded


def expected(model: LoadedModel) -> tuple[np.ndarray, list[list[int]]]:
    """Log-probabilities of all tokens but the first, and the two likeliest tokens before each."""
    (logits,) = batch_logits(model, PROMPT, batch_size=len(PROMPT), kv_dtype=F16)
    targets = np.array(PROMPT[1:], np.int32)
    best = np.argsort(-logits[:-1], axis=1)[:, :2]
    return -token_nll(logits, targets), best.tolist()


def engine_for(model: LoadedModel, **changes: object) -> Engine:
    settings = {"context_size": 256, "batch_size": 32} | changes
    return Engine(model, EngineConfig(**settings))  # type: ignore[arg-type]


def scored(engine: Engine, params: SamplingParams = ONLY_SCORES) -> Sequence:
    sequence = engine.add(PROMPT, params, score_prompt=True)
    run(engine)
    return sequence


def check(sequence: Sequence, model: LoadedModel) -> None:
    assert sequence.prompt_scores is not None and sequence.prompt_scores.is_complete
    first, *rest = sequence.prompt_scores.scored
    assert [first.token_id, *(each.token_id for each in rest)] == PROMPT
    assert first.logprob is None and first.top_logprobs == ()
    logprobs, best = expected(model)
    np.testing.assert_allclose(
        [each.logprob for each in rest], logprobs, atol=0.05
    )  # F16 sums in other orders
    found = [[token_id for token_id, _ in each.top_logprobs] for each in rest]
    differing = sum(a[0] != b[0] for a, b in zip(found, best, strict=True))
    assert differing <= 3  # near ties


@pytest.mark.parametrize("batch_size", [7, 64, 256])
def test_scores_are_those_of_teacher_forcing(model: LoadedModel, batch_size: int) -> None:
    sequence = scored(engine_for(model, batch_size=batch_size))
    check(sequence, model)
    assert sequence.num_generated == 0 and sequence.finish_reason is FinishReason.LENGTH


def test_a_stored_prefix_is_not_used_but_may_be_by_others(model: LoadedModel) -> None:
    engine = engine_for(model, num_cells=1024)
    answer = engine.add(PROMPT, SamplingParams(temperature=0, max_tokens=4))
    run(engine)
    sequence = scored(engine)
    assert sequence.num_cached_tokens == 0
    check(sequence, model)
    again = engine.add(PROMPT, SamplingParams(temperature=0, max_tokens=4))
    run(engine)
    assert again.num_cached_tokens > 100
    assert again.generated_ids.tolist() == answer.generated_ids.tolist()


def test_an_answer_follows_the_scores(model: LoadedModel) -> None:
    engine = engine_for(model)
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    plain = engine.add(PROMPT, params)
    run(engine)
    sequence = scored(engine, params)
    assert sequence.generated_ids.tolist() == plain.generated_ids.tolist()


def test_scores_beside_others_and_without_room(model: LoadedModel) -> None:
    """Cells for all are not there: some are computed twice, but none is scored twice."""
    engine = engine_for(model, num_cells=256, batch_size=64)
    answer = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    engine.add(PROMPT[:50], answer)
    sequences = [engine.add(PROMPT, ONLY_SCORES, score_prompt=True) for _ in range(2)]
    engine.add(PROMPT[:40], answer)
    run(engine)
    for sequence in sequences:
        check(sequence, model)


def test_a_preempted_sequence_goes_on_where_it_was(model: LoadedModel) -> None:
    engine = engine_for(model)
    sequence = engine.add(PROMPT, ONLY_SCORES, score_prompt=True)
    engine.step()
    engine.step()
    engine._scheduler._preempt(sequence)
    assert not sequence.cells.length and len(sequence.prompt_scores.scored) > 1  # type: ignore[union-attr]
    run(engine)
    check(sequence, model)


def test_a_single_token_has_nothing_to_score(model: LoadedModel) -> None:
    engine = engine_for(model)
    sequence = engine.add([5], ONLY_SCORES, score_prompt=True)
    run(engine)
    assert sequence.prompt_scores is not None
    assert [each.logprob for each in sequence.prompt_scores.scored] == [None]


def test_an_empty_prompt_is_refused(model: LoadedModel) -> None:
    with pytest.raises(UsageError, match="empty"):
        engine_for(model).add([], ONLY_SCORES, score_prompt=True)

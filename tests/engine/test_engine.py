"""The engine: exact counts, the same tokens however work is shared out, no lost cells."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from powerserve.backend.base import LoadedModel
from powerserve.core.errors import ContextLengthError, UsageError
from powerserve.engine.engine import Engine, EngineConfig
from powerserve.engine.sequence import FinishReason, Sequence
from powerserve.sampler.params import SamplingParams
from tiny_engine import run, tiny_ggml_model

GREEDY = SamplingParams(temperature=0, max_tokens=12)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedModel]:
    with tiny_ggml_model(tmp_path_factory.mktemp("model")) as loaded:
        yield loaded


def engine_for(model: LoadedModel, **changes: object) -> Engine:
    settings = {"context_size": 128, "batch_size": 16} | changes
    return Engine(model, EngineConfig(**settings))  # type: ignore[arg-type]


def answers(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> list[list[int]]:
    sequences = [engine.add(prompt, params) for prompt in prompts]
    run(engine)
    return [sequence.generated_ids.tolist() for sequence in sequences]


def prompts(count: int, length: int = 20) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 250, length + 3 * index).tolist() for index in range(count)]


def test_max_tokens_is_exact(model: LoadedModel) -> None:
    engine = engine_for(model)
    for wanted in (1, 2, 7):
        sequence = engine.add([1, 2, 3], GREEDY.replace(max_tokens=wanted))
        run(engine)
        assert sequence.num_generated == wanted
        assert sequence.finish_reason is FinishReason.LENGTH


def test_zero_tokens_end_at_once(model: LoadedModel) -> None:
    engine = engine_for(model)
    sequence = engine.add([1, 2, 3], GREEDY.replace(max_tokens=0))
    assert sequence.finish_reason is FinishReason.LENGTH
    assert not engine.has_work


def test_chunked_prefill_gives_the_tokens_of_one_prefill(model: LoadedModel) -> None:
    long = prompts(3, length=60)
    whole = answers(engine_for(model, batch_size=128), long, GREEDY)
    chunked = answers(engine_for(model, batch_size=7), long, GREEDY)
    assert chunked == whole


def test_sequences_together_give_the_tokens_of_sequences_alone(model: LoadedModel) -> None:
    many = prompts(6)
    alone = [answers(engine_for(model), [prompt], GREEDY)[0] for prompt in many]
    engine = engine_for(model, num_cells=1024)
    assert answers(engine, many, GREEDY) == alone


def test_a_prefix_used_again_changes_nothing_but_the_work(model: LoadedModel) -> None:
    engine = engine_for(model)
    (prompt,) = prompts(1, length=50)
    first = engine.add(prompt, GREEDY)
    run(engine)
    again = engine.add(prompt + first.generated_ids.tolist()[:3] + [5], GREEDY)
    run(engine)
    assert again.num_cached_tokens == 53
    fresh = engine_for(model).add(again.token_ids[:54].tolist(), GREEDY)
    assert fresh.num_cached_tokens == 0
    engine_fresh = engine_for(model, deterministic=True)
    expected = answers(engine_fresh, [again.token_ids[:54].tolist()], GREEDY)
    assert again.generated_ids.tolist() == expected[0]


def test_a_prefix_that_another_sequence_continues_is_copied(model: LoadedModel) -> None:
    """So that each sequence's cells lie together, and attention scans no one else's."""
    (prompt,) = prompts(1, length=50)
    questions = [[*prompt, 7, 8], [*prompt, 9, 10], [*prompt, 11]]
    alone = [answers(engine_for(model), [question], GREEDY)[0] for question in questions]
    engine = engine_for(model, num_cells=1024)
    answers(engine, [prompt], GREEDY.replace(max_tokens=1))
    sequences = [engine.add(question, GREEDY) for question in questions]
    engine.step()
    assert [sequence.num_cached_tokens for sequence in sequences] == [50, 50, 50]
    for sequence in sequences:
        assert sequence.cells.stop_cell - sequence.cells.first_cell == sequence.cells.length
    run(engine)
    assert [sequence.generated_ids.tolist() for sequence in sequences] == alone
    engine.clear_prefixes()
    assert engine._pool.num_free == engine._pool.num_cells


def test_sequences_that_lose_their_cells_still_give_the_same_tokens(model: LoadedModel) -> None:
    many = prompts(5, length=60)
    params = GREEDY.replace(max_tokens=40)
    alone = [answers(engine_for(model), [prompt], params)[0] for prompt in many]
    crowded = engine_for(model, num_cells=256)  # room for two and a half of them
    assert answers(crowded, many, params) == alone


def test_a_full_context_ends_with_its_own_reason(model: LoadedModel) -> None:
    engine = engine_for(model, context_size=32)
    sequence = engine.add(list(range(20)), GREEDY.replace(max_tokens=None))
    run(engine)
    assert sequence.finish_reason is FinishReason.CONTEXT
    assert len(sequence.token_ids) == 32


def test_prompts_that_cannot_run_are_refused(model: LoadedModel) -> None:
    engine = engine_for(model, context_size=32)
    with pytest.raises(ContextLengthError, match="32 tokens, but the context holds 32"):
        engine.add([1] * 32, GREEDY)
    with pytest.raises(UsageError, match="empty"):
        engine.add([], GREEDY)
    with pytest.raises(UsageError, match="outside 0 to"):
        engine.add([10**6], GREEDY)


def test_a_request_that_cannot_be_sampled_does_not_stop_the_others(model: LoadedModel) -> None:
    engine = engine_for(model, num_cells=512)
    everything = dict.fromkeys(range(model.config.vocab_size), -np.inf)
    hopeless = engine.add([1, 2, 3], GREEDY.replace(logit_bias=everything))
    sound = engine.add([1, 2, 3], GREEDY)
    errors = []
    while engine.has_work:
        errors += [event.error for event in engine.step() if event.error is not None]
    assert len(errors) == 1 and isinstance(errors[0], UsageError)
    assert hopeless.finish_reason is FinishReason.ERROR
    assert sound.num_generated == GREEDY.max_tokens


def test_stop_tokens_end_a_sequence_unless_ignored(model: LoadedModel) -> None:
    free = engine_for(model).add([1, 2, 3], GREEDY)
    engine = engine_for(model)
    plain = engine.add([1, 2, 3], GREEDY)
    run(engine)
    stop = plain.generated_ids[4].item()
    first = plain.generated_ids.tolist().index(stop)
    stopping = Engine(model, EngineConfig(context_size=128), stop_ids=[stop])
    ended = stopping.add([1, 2, 3], GREEDY)
    ignoring = stopping.add([1, 2, 3], GREEDY.replace(ignore_eos=True))
    run(stopping)
    assert free.finish_reason is None
    assert ended.finish_reason is FinishReason.STOP
    assert ended.generated_ids.tolist() == plain.generated_ids.tolist()[: first + 1]
    assert ignoring.num_generated == GREEDY.max_tokens
    assert stop not in ignoring.generated_ids


def test_cancelling_frees_cells_in_every_state(model: LoadedModel) -> None:
    engine = engine_for(model, max_sequences=2, num_cells=512)
    sequences: list[Sequence] = [engine.add(prompt, GREEDY) for prompt in prompts(4)]
    engine.step()
    for sequence in sequences:
        engine.cancel(sequence)
        assert sequence.finish_reason is FinishReason.CANCELLED
    assert not engine.has_work
    engine.clear_prefixes()
    assert engine._pool.num_free == engine._pool.num_cells


def test_no_cell_is_lost_over_many_requests(model: LoadedModel) -> None:
    engine = engine_for(model, num_cells=256)
    rng = np.random.default_rng(1)
    for _ in range(30):
        length = int(rng.integers(1, 100))
        engine.add(rng.integers(0, 250, length).tolist(), GREEDY.replace(max_tokens=5))
        for _ in range(int(rng.integers(0, 6))):
            engine.step()
    run(engine)
    engine.clear_prefixes()
    assert engine._pool.num_free == engine._pool.num_cells


def test_the_same_seed_gives_the_same_text(model: LoadedModel) -> None:
    params = SamplingParams(temperature=1.5, top_k=0, top_p=1.0, seed=7, max_tokens=20)
    texts = [answers(engine_for(model, deterministic=True), prompts(2), params) for _ in range(2)]
    assert texts[0] == texts[1]
    other = answers(engine_for(model, deterministic=True), prompts(2), params.replace(seed=8))
    assert other != texts[0]

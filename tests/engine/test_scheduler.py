"""Sharing out a step: everyone gets on, and what is being computed is computed once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerserve.backend.base import LoadedModel
from powerserve.backend.reference import ReferenceBackend
from powerserve.cache.cells import CellPool
from powerserve.cache.sequence import SequenceCells
from powerserve.engine.engine import Engine, EngineConfig
from powerserve.engine.pace import FIRST_SHARE, SMALLEST_SHARE, PrefillPace
from powerserve.engine.scheduler import prompt_shares
from powerserve.engine.sequence import FinishReason, Sequence
from powerserve.model.config import config_from_metadata
from powerserve.model.registry import build_graph
from powerserve.sampler.chain import SamplerChain
from powerserve.sampler.params import SamplingParams
from powerserve.storage.gguf import GGUFFile
from tiny_models import TinyModel, write_tiny_model

GREEDY = SamplingParams(temperature=0, max_tokens=6)
PROMPT = np.random.default_rng(0).integers(0, 250, 100).tolist()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedModel]:
    path = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel())
    with GGUFFile.open(path) as file:
        config = config_from_metadata(file.metadata, file.tensors)
        loaded = ReferenceBackend().load(config, build_graph(config), file.tensors)
        yield loaded
        loaded.close()


def engine_for(model: LoadedModel, **changes: object) -> Engine:
    settings = {"context_size": 256, "num_cells": 2048, "batch_size": 64} | changes
    return Engine(model, EngineConfig(**settings))  # type: ignore[arg-type]


def run(engine: Engine) -> int:
    """Run to the end; the number of prompt and answer tokens that were computed."""
    computed = 0
    compute = engine._executor.run

    def counted(batch: object) -> object:
        nonlocal computed
        computed += len(batch.token_ids)  # type: ignore[attr-defined]
        return compute(batch)  # type: ignore[arg-type]

    engine._executor.run = counted  # type: ignore[assignment,method-assign]
    while engine.has_work:
        engine.step()
    engine._executor.run = compute  # type: ignore[method-assign]
    return computed


def sequence_of(length: int) -> Sequence:
    sampler = SamplerChain(GREEDY, vocab_size=10, eos_ids=(), newline_id=None, prompt=[])
    cells = SequenceCells(CellPool(8), 8)
    return Sequence(np.zeros(length, np.int32), GREEDY, sampler, (), cells, 10_000)


def test_prompts_that_arrive_together_share_what_they_have_in_common(model: LoadedModel) -> None:
    engine = engine_for(model)
    sequences = [engine.add(PROMPT, GREEDY) for _ in range(4)]
    computed = run(engine)
    assert [each.num_cached_tokens for each in sequences] == [0, 99, 99, 99]
    assert computed == 100 + 3 * 1 + 4 * (GREEDY.max_tokens or 0) - 4
    lone = engine_for(model)
    alone = lone.add(PROMPT, GREEDY)
    run(lone)
    for each in sequences:
        assert each.generated_ids.tolist() == alone.generated_ids.tolist()


def test_a_running_answer_can_be_shared_too(model: LoadedModel) -> None:
    engine = engine_for(model)
    first = engine.add(PROMPT, GREEDY)
    while first.num_generated < 4:
        engine.step()
    second = engine.add([*first.token_ids.tolist(), 5], GREEDY)
    run(engine)
    assert second.num_cached_tokens == 103  # the newest token of the answer is not computed yet


def test_other_prompts_overtake_one_that_waits_for_a_prefix(model: LoadedModel) -> None:
    engine = engine_for(model, batch_size=16)
    engine.add(PROMPT, GREEDY)
    engine.step()
    follower = engine.add(PROMPT, GREEDY)
    other = engine.add([1, 2, 3], GREEDY)
    engine.step()
    assert (follower.cells.length, other.num_generated) == (0, 1)


def test_who_waits_for_a_prefix_goes_on_when_its_leader_gives_up(model: LoadedModel) -> None:
    engine = engine_for(model, batch_size=16)
    leader, follower = engine.add(PROMPT, GREEDY), engine.add(PROMPT, GREEDY)
    engine.step()
    engine.cancel(leader)
    run(engine)
    assert follower.finish_reason is FinishReason.LENGTH
    assert follower.num_cached_tokens == 16  # what the leader had computed was kept


def test_nothing_is_shared_when_deterministic(model: LoadedModel) -> None:
    engine = engine_for(model, deterministic=True)
    sequences = [engine.add(PROMPT, GREEDY) for _ in range(2)]
    run(engine)
    assert [each.num_cached_tokens for each in sequences] == [0, 0]


def test_a_question_is_not_held_up_by_a_book(model: LoadedModel) -> None:
    engine = engine_for(model, batch_size=16)
    book = engine.add(PROMPT * 2, GREEDY)
    question = engine.add([7] * 8, GREEDY)
    engine.step()
    assert question.num_generated == 1
    assert book.cells.length == 8


@given(st.lists(st.integers(1, 300), max_size=6), st.integers(0, 200))
def test_shares_use_up_the_step_and_starve_no_one(lengths: list[int], num_tokens: int) -> None:
    prompts = [sequence_of(length) for length in lengths]
    shares = dict(prompt_shares(prompts, num_tokens))
    assert sum(shares.values()) == min(num_tokens, sum(lengths))
    assert all(0 < share <= each.num_pending for each, share in shares.items())
    if prompts and num_tokens:
        assert shares[prompts[0]] >= min(lengths[0], (num_tokens + 1) // 2)


def test_prompts_slow_a_running_answer_down_only_so_far() -> None:
    pace = PrefillPace(max_gap_s=0.2, batch_size=512)
    assert pace.share(num_decoding=0) == 512
    assert pace.share(num_decoding=2) == FIRST_SHARE
    for _ in range(20):
        pace.observe(512, seconds=0.512)
    assert pace.share(num_decoding=2) == 192  # 0.2 s of 1 ms each, in whole shares
    for _ in range(50):
        pace.observe(192, seconds=19.2)
    assert pace.share(num_decoding=2) == SMALLEST_SHARE
    for _ in range(50):
        pace.observe(64, seconds=0.0064)
    assert pace.share(num_decoding=2) == 510


def test_without_a_bound_prompts_fill_the_step() -> None:
    pace = PrefillPace(None, batch_size=512)
    pace.observe(512, seconds=60)
    assert pace.share(num_decoding=3) == 509


def test_a_long_prompt_leaves_running_answers_their_pace(model: LoadedModel) -> None:
    engine = engine_for(model, batch_size=128, max_gap_s=1e-9)
    answer = engine.add([1, 2, 3], GREEDY.replace(max_tokens=50))
    engine.step()
    prompt = engine.add(PROMPT * 2, GREEDY)
    lengths = []
    while not prompt.num_generated:
        engine.step()
        lengths.append(prompt.cells.length)
    assert lengths == [127, 159, 191, 200]  # the first step showed how slow they are
    assert answer.num_generated == 1 + len(lengths)


def test_sequences_lie_together_in_a_cache_full_of_prefixes(model: LoadedModel) -> None:
    """Attention scans a sequence's cells from the first to the last, whatever lies between."""
    engine = engine_for(model, num_cells=1024)
    rng = np.random.default_rng(1)
    for first in range(0, 48, 4):  # no two prompts begin alike
        prompts = [[first + i, *rng.integers(0, 250, rng.integers(40, 130))] for i in range(4)]
        group = [engine.add([int(token) for token in prompt], GREEDY) for prompt in prompts]
        engine.step()
        while engine.has_work:
            for each in group:
                if each.cells.length:
                    assert each.cells.stop_cell - each.cells.first_cell == each.cells.length
            engine.step()
    assert engine.cache_use.num_kept > 512  # the others are still there

"""What is verified depends on what it costs and on what has come true."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from powerserve.backend.reference import ReferenceBackend
from powerserve.core.errors import MemoryLimitError
from powerserve.sampler.params import SamplingParams
from powerserve.speculative.cost_model import SIZES, CostCurve
from powerserve.speculative.curve_store import CurveSource
from powerserve.speculative.options import SpeculationMode, SpeculationOptions
from powerserve.speculative.speculator import Speculator
from powerserve.speculative.state import ProposalRequest, SequenceSpeculation, SharedOutputs
from powerserve.speculative.tree import FlatTree
from tiny_models import TinyModel, write_tiny_model
from trees import FREE, KnownCurve, WithoutClock, engine_with, finish, load, speculator_for

LINEAR = CostCurve(SIZES, tuple(float(size) for size in SIZES), 0.0)
HALF = CostCurve(SIZES, tuple(0.5 + size / 2 for size in SIZES), 0.0)
REPEATING = [1, 2, 3, 4, 5, 6, 7, 8] * 6
RANDOM = np.random.default_rng(0).permutation(5000)[:48].tolist()


def speculator(
    mode: SpeculationMode = SpeculationMode.AUTO, curve: CurveSource | None = None, **changes: bool
) -> Speculator:
    return WithoutClock(
        SpeculationOptions(mode=mode, **changes),  # type: ignore[arg-type]
        vocab_size=5000,
        stop_ids=(),
        curve=curve or KnownCurve(),
    )


def request(state: SequenceSpeculation, tokens: list[int], max_depth: int = 50) -> ProposalRequest:
    return ProposalRequest(state, np.array(tokens, np.int32), max_depth, 100)


def after_reading(proposer: Speculator, tokens: list[int]) -> FlatTree | None:
    """The tree after a text that was read token by token."""
    state = proposer.new_state()
    flat = None
    for length in range(2, len(tokens) + 1):
        (flat,) = proposer.propose([request(state, tokens[:length])])
    return flat


def test_free_candidates_are_all_taken_and_expensive_ones_never() -> None:
    flat = after_reading(speculator(), REPEATING)
    assert flat is not None
    assert flat.token_ids[:9].tolist() == [8, 1, 2, 3, 4, 5, 6, 7, 8]
    assert after_reading(speculator(curve=KnownCurve(LINEAR)), REPEATING) is None
    assert after_reading(speculator(), RANDOM) is None


def test_a_mode_that_is_asked_for_verifies_at_least_one_candidate() -> None:
    forced = speculator(SpeculationMode.SUFFIX, KnownCurve(LINEAR))
    flat = after_reading(forced, REPEATING)
    assert flat is not None and len(flat) == 2


def test_what_was_never_verified_is_learnt_all_the_same() -> None:
    """A text that repeats pairs but never what follows them: with time nothing is proposed."""
    misleading = [t for i in range(400) for t in (7, 8, 1000 + i)] + [7, 8]
    assert after_reading(speculator(curve=KnownCurve(HALF)), misleading) is None
    assert after_reading(speculator(curve=KnownCurve(FREE)), [*misleading[:9], 7, 8]) is not None


def test_candidates_of_all_sequences_compete_for_the_same_step() -> None:
    proposer = speculator(curve=KnownCurve(HALF))
    reliable, doubtful = proposer.new_state(), proposer.new_state()
    for length in range(2, len(REPEATING) + 1):
        proposer.propose([request(reliable, REPEATING[:length])])
    mixed = [*RANDOM, 7, 8, 11, *RANDOM[::-1], 7, 8]
    flats = proposer.propose([request(reliable, REPEATING), request(doubtful, mixed)])
    assert flats[0] is not None and len(flats[0]) > 3
    assert flats[1] is None
    total = len(flats[0]) + 1
    assert total in SIZES  # a size that was measured


def test_nothing_is_proposed_that_could_not_be_used() -> None:
    proposer = speculator()
    state = proposer.new_state()
    (flat,) = proposer.propose([request(state, REPEATING, max_depth=3)])
    assert flat is not None and int(flat.depths.max()) == 3
    (nothing,) = proposer.propose([request(state, REPEATING, max_depth=0)])
    assert nothing is None


def test_the_curve_is_measured_when_there_is_something_to_hope_for() -> None:
    asked: list[int] = []

    def time_step(num_tokens: int, num_cells: int) -> float:
        asked.append(num_tokens)
        return 0.001

    proposer = speculator(curve=CurveSource())
    proposer.attach(time_step)
    assert after_reading(proposer, RANDOM) is None and not asked
    assert after_reading(proposer, REPEATING) is not None
    count = len(asked)
    assert count > 0
    after_reading(proposer, REPEATING)
    assert len(asked) == count


def test_without_a_free_cell_the_measurement_waits() -> None:
    def no_room(num_tokens: int, num_cells: int) -> float:
        raise MemoryLimitError("no KV cell is free")

    proposer = speculator(curve=CurveSource())
    proposer.attach(no_room)
    assert after_reading(proposer, REPEATING) is None
    proposer.attach(lambda num_tokens, num_cells: 0.001)
    assert after_reading(proposer, REPEATING) is not None


def test_answers_to_others_are_repeated_only_if_shared() -> None:
    answer = list(range(100, 140))
    for shares in (False, True):
        proposer = speculator(share_outputs=shares)
        proposer.release(proposer.new_state(), answer)
        (flat,) = proposer.propose([request(proposer.new_state(), [5, 6, 110, 111, 112])])
        assert (flat is not None) == shares
    assert flat is not None and flat.token_ids[:3].tolist() == [112, 113, 114]


def test_shared_answers_are_bounded_and_readers_keep_theirs() -> None:
    shared = SharedOutputs(max_tokens=100)
    old = shared.current
    for start in range(20):
        shared.add(list(range(start * 10, start * 10 + 10)))
        assert len(shared.current.token_ids) <= 100
    assert old.token_ids[:3] == [0, 1, 2] and old is not shared.current
    assert shared.current.token_ids[-1] == 199
    assert all(b - a == 1 for a, b in pairwise(shared.current.token_ids))


@pytest.mark.parametrize("same", [True, False], ids=["twin", "stranger"])
def test_a_draft_model_is_used_as_far_as_it_is_right(tmp_path: Path, same: bool) -> None:
    """A stranger of the same vocabulary is tried, falls silent, and is tried again later."""
    backend = ReferenceBackend()
    target = load(backend, write_tiny_model(tmp_path / "target.gguf", TinyModel()))
    other = TinyModel() if same else TinyModel(seed=99)
    draft = load(backend, write_tiny_model(tmp_path / "draft.gguf", other))
    chosen = speculator_for(target, SpeculationOptions(), draft)
    chosen._curve, chosen._draft_curve = KnownCurve(HALF), KnownCurve(FIFTH)
    engine = engine_with(target, chosen, context_size=256)
    params = SamplingParams(temperature=0, max_tokens=230)
    sequence = engine.add([1, 2, 3], params)
    finish(engine)
    assert sequence.speculation is not None
    counters = sequence.speculation.counters
    if same:
        assert counters.num_draft_forwards > 100 and counters.tokens_per_iteration > 1.5
    else:
        assert 1 <= counters.num_draft_forwards < 60
        assert counters.tokens_per_iteration < 1.2


FIFTH = CostCurve(SIZES, tuple(0.15 + size / 20 for size in SIZES), 0.0)

"""Speculation changes the speed and nothing else; no cell is lost whatever happens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from powerserve.backend.base import LoadedModel, StepInterrupted
from powerserve.backend.ggml.backend import GgmlBackend, GgmlOptions
from powerserve.backend.reference import ReferenceBackend
from powerserve.core import dtypes
from powerserve.engine.engine import Engine
from powerserve.engine.loader import LoadOptions
from powerserve.engine.sequence import FinishReason, Sequence
from powerserve.evaluate.scoring import batch_logits
from powerserve.llm import LLM
from powerserve.sampler.chain import SamplerChain
from powerserve.sampler.params import SamplingParams
from powerserve.speculative.options import SpeculationMode, SpeculationOptions, TreeParams
from powerserve.speculative.state import ProposalRequest
from powerserve.speculative.tree import TokenTree
from real_prompts import REAL_PROMPTS
from tiny_models import TinyModel, write_tiny_model
from trees import InventedTrees, engine_with, finish, load, speculator_for

GREEDY = SamplingParams(temperature=0, max_tokens=24)
SAMPLED = SamplingParams(
    temperature=0.9, top_k=20, repeat_penalty=1.2, seed=5, max_tokens=24
)  # fmt: skip
MODES = [SpeculationMode.AUTO, SpeculationMode.SUFFIX, SpeculationMode.DRAFT, SpeculationMode.TREE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def exact(request: pytest.FixtureRequest, folder: Path) -> LoadedModel:
    """A model on the float32 reference, where the size of a batch changes nothing that matters."""
    path = write_tiny_model(folder / f"{request.param}.gguf", TinyModel(request.param))
    return load(ReferenceBackend(), path)


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load(ReferenceBackend(), write_tiny_model(folder / "target.gguf", TinyModel()))


@pytest.fixture(scope="module")
def draft(folder: Path) -> LoadedModel:
    """A model that resembles the target, so that some of its guesses come true."""
    path = write_tiny_model(folder / "draft.gguf", TinyModel(dtype="Q4_0"))
    return load(ReferenceBackend(), path)


@pytest.fixture(scope="module")
def fast(folder: Path) -> Iterator[LoadedModel]:
    backend = GgmlBackend(GgmlOptions(num_threads=1))
    loaded = load(backend, write_tiny_model(folder / "fast.gguf", TinyModel()))
    yield loaded
    loaded.close()
    backend.close()


def answers(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> list[list[int]]:
    sequences = [engine.add(prompt, params) for prompt in prompts]
    finish(engine)
    return [sequence.generated_ids.tolist() for sequence in sequences]


PROMPTS = [[5, 6, 7, 8, 5, 6, 7], [9, 8, 9, 8, 9, 8], list(range(30, 60))]


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_tokens_of_plain_decoding(
    exact: LoadedModel, draft: LoadedModel, mode: SpeculationMode, params: SamplingParams
) -> None:
    plain = answers(engine_with(exact, None), PROMPTS, params)
    speculator = speculator_for(exact, SpeculationOptions(mode=mode), draft)
    engine = engine_with(exact, speculator)
    sequences = [engine.add(prompt, params) for prompt in PROMPTS]
    finish(engine)
    assert [sequence.generated_ids.tolist() for sequence in sequences] == plain
    counters = [s.speculation.counters for s in sequences if s.speculation is not None]
    if mode.needs_draft or params is GREEDY:  # random tokens hardly repeat
        assert sum(each.num_draft_tokens for each in counters) > 0
    for each, tokens in zip(counters, plain, strict=True):
        assert each.num_generated_tokens == len(tokens) - 1  # the first one comes with the prompt
        assert each.num_generated_tokens == each.num_iterations + each.num_accepted_tokens


@given(data=st.data())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_tree_gives_the_tokens_of_plain_decoding(
    exact: LoadedModel, data: st.DataObject
) -> None:
    """Trees of any shape, in which the truth is planted at random places."""
    params = data.draw(st.sampled_from([GREEDY, SAMPLED]))
    prompt = PROMPTS[0]
    (truth,) = answers(engine_with(exact, None), [prompt], params)

    def invent(tree: TokenTree, request: ProposalRequest) -> None:
        for _ in range(data.draw(st.integers(0, 9))):
            parent = data.draw(st.integers(0, len(tree) - 1))
            if not tree.is_extendable(parent):
                continue
            place = len(request.token_ids) - len(prompt) + tree.depths[parent]
            wrong = st.integers(0, 250)
            right = st.just(truth[place]) if place < len(truth) else wrong
            tree.add(parent, data.draw(right | wrong), data.draw(st.floats(0, 1)))

    assert answers(engine_with(exact, InventedTrees(invent)), [prompt], params) == [truth]


@pytest.mark.timeout(1200)  # a minute, but numpy's threads suffer on a busy machine
def test_fifty_real_prompts(smollm2: Path) -> None:
    """The real model, its weights in float32: what repetition proposes changes no token."""

    def texts(mode: SpeculationMode) -> tuple[list[list[int]], int]:
        options = LoadOptions(
            backend="reference", context_size=1024, speculation=SpeculationOptions(mode=mode)
        )
        with LLM(smollm2, options) as llm:
            completions = llm.generate_all(REAL_PROMPTS, temperature=0, max_tokens=10)
            accepted = sum(
                c.speculation.num_accepted_tokens for c in completions if c.speculation is not None
            )
            return [completion.token_ids for completion in completions], accepted

    plain, none = texts(SpeculationMode.OFF)
    speculative, accepted = texts(SpeculationMode.SUFFIX)
    assert speculative == plain
    assert (len(plain), none) == (50, 0) and accepted > 30


def test_the_target_as_its_own_draft_is_nearly_always_right(
    fast: LoadedModel, folder: Path
) -> None:
    backend = GgmlBackend(GgmlOptions(num_threads=1))
    twin = load(backend, folder / "fast.gguf")
    options = SpeculationOptions(mode=SpeculationMode.TREE, tree=TreeParams(min_prob=0.0, p_base=1))
    engine = engine_with(fast, speculator_for(fast, options, twin))
    sequence = engine.add(PROMPTS[2], GREEDY)
    finish(engine)
    assert sequence.speculation is not None
    counters = sequence.speculation.counters
    assert counters.tokens_per_iteration > 4
    assert counters.num_draft_forwards <= counters.num_iterations * 12


def conditional(model: LoadedModel, tokens: list[int], params: SamplingParams) -> dict[int, float]:
    """Probabilities of the token after `tokens`, from a plain run."""
    (logits,) = batch_logits(model, tokens, batch_size=64, kv_dtype=dtypes.F32)
    chain = SamplerChain(params, vocab_size=model.config.vocab_size, eos_ids=(), newline_id=None)
    ids, shares = chain.distribution(logits[-1])
    return dict(zip(ids.tolist(), shares.tolist(), strict=True))


def test_sampled_answers_have_the_distribution_of_the_target(model: LoadedModel) -> None:
    """Chi-square over all answers of three tokens, with trees that propose some of them."""
    params = SamplingParams(temperature=1.5, top_k=3, max_tokens=3)
    prompt, num_answers = PROMPTS[1], 3000
    expected: dict[tuple[int, ...], float] = {(): 1.0}
    followers: dict[tuple[int, ...], list[int]] = {}
    for _ in range(3):
        longer: dict[tuple[int, ...], float] = {}
        for answer, share in expected.items():
            following = conditional(model, [*prompt, *answer], params)
            followers[answer] = list(following)
            longer |= {(*answer, token): share * p for token, p in following.items()}
        expected = longer

    def invent(tree: TokenTree, request: ProposalRequest) -> None:
        answer = tuple(request.token_ids[len(prompt) :].tolist())
        for second in followers[answer][1:]:  # not the most probable one
            node = tree.add(0, second, 0.5)
            if tree.is_extendable(node):
                for third in followers[(*answer, second)][:2]:
                    tree.add(node, third, 0.5)

    engine = engine_with(model, InventedTrees(invent), max_sequences=16)
    sequences = [engine.add(prompt, params.replace(seed=seed)) for seed in range(num_answers)]
    finish(engine)
    seen = Counter(tuple(sequence.generated_ids.tolist()) for sequence in sequences)
    assert set(seen) <= set(expected) and len(expected) == 27
    statistic = sum(
        (seen[answer] - num_answers * share) ** 2 / (num_answers * share)
        for answer, share in expected.items()
    )
    assert statistic < 65  # 26 degrees of freedom: exceeded less than once in 10,000 samples
    accepted = sum(s.speculation.counters.num_accepted_tokens for s in sequences if s.speculation)
    assert accepted > num_answers / 4


def test_a_stop_string_cuts_what_the_same_step_made_behind_it(smollm2: Path) -> None:
    options = LoadOptions(speculation=SpeculationOptions(mode=SpeculationMode.SUFFIX))
    prompt = "1 2 3 4 5 1 2 3 4 5 1 2 3 4"
    with LLM(smollm2, options) as llm:
        free = llm.generate(prompt, temperature=0, max_tokens=16)
        assert free.text.startswith(" 5 1 2 3 4")
        cut = llm.generate(prompt, temperature=0, max_tokens=16, stop=(" 3",))
        assert (cut.text, cut.finish_reason) == (" 5 1 2", FinishReason.STOP)
        assert cut.token_ids == free.token_ids[: len(cut.token_ids)]
        assert len(cut.token_ids) < len(free.token_ids)
        assert cut.speculation is not None and cut.speculation.num_accepted_tokens > 2


def test_each_token_has_its_own_event_and_only_the_last_one_ends(model: LoadedModel) -> None:
    (truth,) = answers(engine_with(model, None), [PROMPTS[0]], GREEDY)

    def invent(tree: TokenTree, request: ProposalRequest) -> None:
        node = 0
        for token_id in truth[len(request.token_ids) - len(PROMPTS[0]) :]:
            if tree.is_extendable(node):
                node = tree.add(node, token_id, 1.0)

    engine = engine_with(model, InventedTrees(invent))
    sequence = engine.add(PROMPTS[0], GREEDY)
    first, rest = engine.step(), engine.step()
    assert not engine.has_work and len(first) == 1 and len(rest) == len(truth) - 1
    tokens = [event.sampled.token_id for event in first + rest if event.sampled is not None]
    assert tokens == truth
    assert [event.finish_reason for event in rest[:-1]] == [None] * (len(rest) - 1)
    assert rest[-1].finish_reason is sequence.finish_reason is FinishReason.LENGTH


def test_candidates_never_reach_past_the_context(model: LoadedModel) -> None:
    def invent(tree: TokenTree, request: ProposalRequest) -> None:
        node = 0
        while tree.is_extendable(node) and len(tree) < 30:
            node = tree.add(node, 7, 0.9)

    engine = engine_with(model, InventedTrees(invent), context_size=24)
    sequence = engine.add(list(range(16)), GREEDY.replace(max_tokens=None))
    finish(engine)
    assert sequence.finish_reason is FinishReason.CONTEXT
    assert len(sequence.token_ids) == 24


def test_an_interrupted_step_loses_no_cell(
    fast: LoadedModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = GgmlBackend(GgmlOptions(num_threads=1))
    twin = load(backend, folder / "fast.gguf")
    speculator = speculator_for(fast, SpeculationOptions(mode=SpeculationMode.DRAFT), twin)
    engine = engine_with(fast, speculator)
    sequence = engine.add(PROMPTS[2], GREEDY)
    engine.step()
    engine.step()
    run = engine._executor.run
    with monkeypatch.context() as patch:
        patch.setattr(engine._executor, "run", Interruption())
        with pytest.raises(StepInterrupted):
            engine.step()
    assert engine._executor.run == run
    plain = answers(engine_with(fast, None), [PROMPTS[2]], GREEDY)
    finish(engine)
    assert sequence.generated_ids.tolist() == plain[0]
    assert_nothing_owned(engine)
    engine.close()


class Interruption:
    """A step that is interrupted."""

    def __call__(self, batch: object) -> None:
        raise StepInterrupted


def assert_nothing_owned(engine: Engine) -> None:
    """Every cell of target and draft is free once prefixes are forgotten."""
    engine.clear_prefixes()
    assert engine._pool.num_free == engine._pool.num_cells
    draft = engine.speculator._draft if engine.speculator is not None else None
    if draft is not None:
        draft.clear_prefixes()
        assert draft.pool.num_free == draft.pool.num_cells


class CellOwnership(RuleBasedStateMachine):
    """Whatever comes in whatever order, each cell is free or has the owners that know of it."""

    target: LoadedModel
    draft: LoadedModel

    def __init__(self) -> None:
        super().__init__()
        self.random = np.random.default_rng(0)
        self.sequences: list[Sequence] = []
        options = SpeculationOptions(mode=SpeculationMode.DRAFT, share_outputs=True)
        speculator = speculator_for(self.target, options, self.draft)
        self.engine = engine_with(
            self.target, speculator, num_cells=256, context_size=96, max_sequences=3
        )

    @rule(start=st.integers(0, 2), length=st.integers(2, 60), tokens=st.integers(1, 40))
    def add(self, start: int, length: int, tokens: int) -> None:
        """A request; those with the same start share a prefix, and repeat themselves."""
        prompt = [start, *([3, 4, 5, 6, 7, start + 8] * 10)][:length]
        params = SamplingParams(temperature=1.0, top_k=4, seed=length, max_tokens=tokens)
        self.sequences.append(self.engine.add(prompt, params))

    @precondition(lambda self: self.engine.has_work)
    @rule(count=st.integers(1, 4))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.engine.step()

    @precondition(lambda self: self.sequences)
    @rule(index=st.integers(0, 100))
    def cancel(self, index: int) -> None:
        self.engine.cancel(self.sequences.pop(index % len(self.sequences)))

    @rule()
    def clear_prefixes(self) -> None:
        self.engine.clear_prefixes()

    @invariant()
    def every_owner_is_known(self) -> None:
        engine = self.engine
        owners = np.zeros(engine._pool.num_cells, int)
        for sequence in self.sequences:
            np.add.at(owners, sequence.cells.cells, 1)
        assert engine._prefixes is not None
        for entry in engine._prefixes._entries:
            np.add.at(owners, entry.cells, 1)
        assert (engine._pool._owners == owners).all()
        assert engine._pool.num_free == (owners == 0).sum()

    def teardown(self) -> None:
        finish(self.engine)
        assert_nothing_owned(self.engine)
        self.engine._executor.close()


def test_cells_never_leak(fast: LoadedModel, folder: Path) -> None:
    backend = GgmlBackend(GgmlOptions(num_threads=1))
    CellOwnership.target = fast
    CellOwnership.draft = load(
        backend, write_tiny_model(folder / "d.gguf", TinyModel(dtype="Q4_0"))
    )
    run_state_machine_as_test(
        CellOwnership, settings=settings(max_examples=25, stateful_step_count=25, deadline=None)
    )

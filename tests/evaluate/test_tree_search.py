"""Searching parameters of token trees: replays against the engine, files, ranking."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from model_pairs import ModelPair, write_pair
from powerserve import LLM, LoadOptions, SamplingParams
from powerserve.core import dtypes
from powerserve.core.errors import ConfigError, ContextLengthError, UsageError
from powerserve.evaluate.scoring import batch_logits
from powerserve.evaluate.tree_search.answers import KnownAnswer, known_answers
from powerserve.evaluate.tree_search.database import PointDatabase
from powerserve.evaluate.tree_search.folder import ModelIdentity, SearchFolder, Subject
from powerserve.evaluate.tree_search.grid import TreeGrid
from powerserve.evaluate.tree_search.plot import check_plot, plot_ranking, varied_parameters
from powerserve.evaluate.tree_search.predictions import Beginning, DraftPredictions
from powerserve.evaluate.tree_search.ranking import rank_points, tokens_per_s
from powerserve.evaluate.tree_search.replay import TreeReplay
from powerserve.evaluate.tree_search.search import TreeSearch, check_pair
from powerserve.evaluate.tree_search.timing import StepTimes
from powerserve.speculative.options import (
    SpeculationCounters,
    SpeculationMode,
    SpeculationOptions,
    TreeParams,
)
from powerserve.storage.resolve import ModelSource, resolve_model

PROMPT = "the world and hello in the"
MAX_TOKENS = 40
# Numpy in float32: the same logits in steps of any size, so that counts can be compared exactly.
EXACT = LoadOptions(
    backend="reference",
    kv_dtype=dtypes.F32,
    context_size=256,
    speculation=SpeculationOptions(mode=SpeculationMode.OFF),
)
UNUSUAL = (
    TreeParams(draft_batch_size=1),
    TreeParams(draft_batch_size=2),
    TreeParams(draft_batch_size=20, min_prob=0, temperature=0.5, early_stop=False),
    TreeParams(draft_batch_size=16, top_k=3, max_fan_out=1, p_base=0),
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> ModelPair:
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def target(pair: ModelPair) -> Iterator[LLM]:
    with LLM(pair.target, EXACT) as llm:
        yield llm


@pytest.fixture(scope="module")
def draft(pair: ModelPair) -> Iterator[LLM]:
    with LLM(pair.draft, EXACT) as llm:
        yield llm


@pytest.fixture(scope="module")
def answer(target: LLM) -> KnownAnswer:
    return known_answers(target, [PROMPT], max_tokens=MAX_TOKENS)[0]


def predictions_of(
    draft: LLM, answer: KnownAnswer, vocab_size: int | None = None
) -> DraftPredictions:
    return DraftPredictions(
        draft.loaded.model,
        answer,
        num_best=20,
        max_detour=20,
        vocab_size=vocab_size or draft.loaded.config.vocab_size,
        kv_dtype=draft.loaded.options.kv_dtype,
    )


def real_counters(
    source: ModelSource, params: TreeParams, prompt: list[int], options: LoadOptions
) -> SpeculationCounters:
    """What the engine counts when it speculates with these parameters."""
    speculation = SpeculationOptions(mode=SpeculationMode.TREE, tree=params)
    with LLM(source, replace(options, speculation=speculation)) as llm:
        completion = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=MAX_TOKENS))
    assert completion.speculation is not None
    return completion.speculation


@pytest.mark.parametrize("params", [*TreeGrid().points(seed=4)[:8], *UNUSUAL], ids=str)
def test_a_replay_counts_what_the_engine_counts(
    params: TreeParams, pair: ModelPair, target: LLM, draft: LLM, answer: KnownAnswer
) -> None:
    source = replace(resolve_model(pair.target), draft=resolve_model(pair.draft))
    stop_ids = target.loaded.tokenizer.stop_ids
    replay = TreeReplay(predictions_of(draft, answer), max_tokens=MAX_TOKENS, stop_ids=stop_ids)
    real = real_counters(source, params, list(answer.prompt_ids), EXACT)
    assert replay.run(params) == real
    assert real.num_generated_tokens == MAX_TOKENS - 1
    assert 0 < real.num_accepted_tokens < real.num_draft_tokens or params.draft_batch_size == 1


def test_smollm2_as_its_own_draft(smollm2: Path) -> None:
    """Real text that ends by itself; the draft errs only where the tree leaves room for it."""
    params = TreeParams(temperature=0.5, min_prob=0.01)
    options = LoadOptions(context_size=256, deterministic=True)
    with LLM(smollm2, options) as llm:
        question = ["What is 2+2?"]
        (answer,) = known_answers(llm, question, max_tokens=MAX_TOKENS, chat=True)
        stop_ids = llm.loaded.tokenizer.stop_ids
        assert answer.token_ids[-1] in stop_ids and len(answer.token_ids) < MAX_TOKENS
        predictions = predictions_of(llm, answer)
        counters = TreeReplay(predictions, max_tokens=MAX_TOKENS, stop_ids=stop_ids).run(params)
        predictions.close()
    assert counters.num_generated_tokens == len(answer.token_ids) - 1
    assert counters.tokens_per_iteration > 4
    source = resolve_model(smollm2)
    source = replace(source, draft=source)
    real = real_counters(
        source, params, list(answer.prompt_ids), replace(options, deterministic=False)
    )
    # Steps of several tokens round differently, so a tree may differ in an improbable node.
    assert abs(real.num_iterations - counters.num_iterations) <= 1


def test_predictions_are_the_drafts_after_any_beginning(draft: LLM, answer: KnownAnswer) -> None:
    predictions = predictions_of(draft, answer, vocab_size=200)
    for length, detour in ((1, ()), (40, ()), (7, (5,)), (7, (5, 9, 11)), (39, (3, 3)), (1, (0,))):
        text = [*answer.prompt_ids, *answer.token_ids[:length], *detour]
        loaded = draft.loaded
        (logits,) = batch_logits(
            loaded.model, text, batch_size=len(text), kv_dtype=loaded.options.kv_dtype
        )
        expected = np.argsort(-logits[-1][:200])[:20]  # tokens the target lacks are no candidates
        ids, values = predictions.after(Beginning(length, detour))
        assert ids.tolist() == expected.tolist()
        np.testing.assert_allclose(values, logits[-1][expected], rtol=1e-4, atol=1e-4)


def test_points_share_predictions(draft: LLM, answer: KnownAnswer) -> None:
    predictions = predictions_of(draft, answer)
    replay = TreeReplay(predictions, max_tokens=MAX_TOKENS, stop_ids=())
    wide = TreeParams(min_prob=0, temperature=3, draft_batch_size=20)
    first, known = replay.run(wide), len(predictions)
    assert known > MAX_TOKENS  # those along the answer, and some detours
    assert replay.run(wide) == first
    assert len(predictions) == known
    other = replay.run(replace(wide, temperature=2.5, draft_batch_size=16))
    assert len(predictions) - known < other.num_draft_forwards / 4


def test_a_token_of_the_answer_is_no_detour(draft: LLM, answer: KnownAnswer) -> None:
    predictions = predictions_of(draft, answer)
    third, wrong = answer.token_ids[2], (answer.token_ids[2] + 1) % 200
    assert predictions.extended(Beginning(2), third) == Beginning(3)
    assert predictions.extended(Beginning(2), wrong) == Beginning(2, (wrong,))
    assert predictions.extended(Beginning(2, (wrong,)), answer.token_ids[3]).length == 2
    assert predictions.extended(Beginning(MAX_TOKENS), third) == Beginning(MAX_TOKENS, (third,))


def test_answers_must_fit_and_be_worth_speculating(target: LLM) -> None:
    with pytest.raises(ContextLengthError, match="do not fit into the context of 256"):
        known_answers(target, [PROMPT], max_tokens=255)
    with pytest.raises(UsageError, match="nothing to speculate about"):
        known_answers(target, [PROMPT], max_tokens=1)


def test_the_original_grid() -> None:
    points = TreeGrid().points(seed=0)
    assert len(points) == len(set(points)) == 1620
    assert points[0] == TreeParams()
    assert {params.top_k for params in points} == {10, 15, 20}
    assert {params.min_prob for params in points} == {0.1, 0.15, 0.175, 0.2, 0.25}
    assert points == TreeGrid().points(seed=0) != TreeGrid().points(seed=1)


def test_the_defaults_come_first_for_each_size_of_tree() -> None:
    points = TreeGrid(draft_batch_size=(8, 4), top_k=(10,), temperature=(1.0,)).points(seed=0)
    assert points[:2] == [TreeParams(draft_batch_size=8), TreeParams(draft_batch_size=4)]
    assert len(points) == 2 + 2 * 3 * 6 * 5


def test_an_impossible_value_is_refused() -> None:
    with pytest.raises(UsageError, match="min_prob must be within 0 and 1"):
        TreeGrid(min_prob=(0.1, 1.5)).points(seed=0)


# The database

COUNTERS = SpeculationCounters(
    num_iterations=10,
    num_generated_tokens=25,
    num_draft_tokens=110,
    num_accepted_tokens=15,
    num_draft_forwards=40,
)


def test_lines_have_the_originals_names(tmp_path: Path) -> None:
    path = tmp_path / "database.jsonl"
    PointDatabase(path).add(TreeParams(), COUNTERS)
    assert json.loads(path.read_text()) == {
        "params": {
            "draft_batch_size": 12,
            "draft_top_k": 15,
            "temperature": 1.5,
            "p_base": 0.9,
            "max_fan_out": 3,
            "min_prob": 0.2,
            "early_stop": 1,
        },
        "stat": {
            "n_iterations": 10,
            "n_generated_tokens": 25,
            "n_draft_times": 40,
            "n_draft_tokens": 110,
            "n_accepted_tokens": 15,
        },
    }
    assert PointDatabase(path).points == {TreeParams(): COUNTERS}


def test_a_line_that_was_cut_short_costs_one_point(tmp_path: Path) -> None:
    path = tmp_path / "database.jsonl"
    first, second, third = TreeGrid().points(seed=0)[:3]
    database = PointDatabase(path)
    database.add(first, COUNTERS)
    database.add(second, COUNTERS)
    path.write_bytes(path.read_bytes()[:-20])
    notes: list[str] = []
    database = PointDatabase(path, Notes(notes.append))
    assert list(database.points) == [first]
    assert notes == [f"warning: the last line of {path} is damaged and ignored"]
    database.add(third, COUNTERS)
    database.add(second, COUNTERS)
    assert list(PointDatabase(path).points) == [first, third, second]


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"\xff\xfe",
        b'{"params": {}}',
        b'{"params": {"draft_batch_size": 0, "draft_top_k": 15, "temperature": 1.5, "p_base": 0.9, '
        b'"max_fan_out": 3, "min_prob": 0.2, "early_stop": 1}, "stat": {"n_iterations": 1, '
        b'"n_generated_tokens": 1, "n_draft_times": 1, "n_draft_tokens": 1, '
        b'"n_accepted_tokens": 1}}',
    ],
)
def test_damage_elsewhere_is_an_error(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "database.jsonl"
    PointDatabase(path).add(TreeParams(), COUNTERS)
    path.write_bytes(line + b"\n" + path.read_bytes())
    with pytest.raises(ConfigError, match="line 1 is damaged"):
        PointDatabase(path)


# The search

SUBJECT_PROMPTS = (PROMPT, "12 and in the")
FEW = TreeGrid().points(seed=1)[:6]


class Notes:
    """Takes notes, and lets nothing else be seen; counted work may be stopped."""

    def __init__(self, note: Callable[[str], None] = print, stop_after: int | None = None) -> None:
        self.note = note
        self._stop_after = stop_after
        self.labels: list[str] = []

    def transfer(self, label: str, total_bytes: int, done_bytes: int) -> Counting:
        raise AssertionError("a search transfers nothing")

    def count(self, label: str, total: int, done: int = 0) -> Counting:
        self.labels.append(f"{label}: {done} of {total}")
        return Counting(self._stop_after if label == "points" else None)


class Counting:
    """Counted work; as by Ctrl-C, it ends after so many pieces."""

    def __init__(self, stop_after: int | None) -> None:
        self._left = stop_after

    def __enter__(self) -> Callable[[int], None]:
        return self._advance

    def __exit__(self, *details: object) -> None:
        pass

    def _advance(self, pieces: int) -> None:
        if self._left is not None:
            self._left -= pieces
            if self._left == 0:
                raise KeyboardInterrupt


def subject_of(pair: ModelPair) -> Subject:
    return Subject(
        target=ModelIdentity.of(resolve_model(pair.target)),
        draft=ModelIdentity.of(resolve_model(pair.draft)),
        prompts=SUBJECT_PROMPTS,
        chat=False,
        max_tokens=MAX_TOKENS,
        backend="reference",
        kv_type="f32",
    )


def finish(search: TreeSearch, target: LLM, draft: LLM) -> None:
    if search.needs_target:
        search.ask_target(target)
    if search.needs_draft:
        search.try_points(draft)
    assert not search.needs_target and not search.needs_draft


def test_a_stopped_search_goes_on(tmp_path: Path, pair: ModelPair, target: LLM, draft: LLM) -> None:
    subject = subject_of(pair)
    whole = SearchFolder(tmp_path / "whole")
    finish(TreeSearch(whole, subject, FEW), target, draft)

    parts = SearchFolder(tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        finish(TreeSearch(parts, subject, FEW, Notes(stop_after=2)), target, draft)
    assert list(PointDatabase(parts.database).points) == FEW[:2]
    progress = Notes()
    again = TreeSearch(parts, subject, FEW, progress)
    assert not again.needs_target  # its answers and times are kept
    finish(again, target, draft)
    assert progress.labels == ["points: 2 of 6"]
    assert parts.database.read_bytes() == whole.database.read_bytes()


def test_points_count_all_prompts(tmp_path: Path, pair: ModelPair, target: LLM, draft: LLM) -> None:
    folder = SearchFolder(tmp_path)
    finish(TreeSearch(folder, subject_of(pair), FEW[:1]), target, draft)
    answers = folder.record().answers
    expected = SpeculationCounters()
    for answer in answers:
        replay = TreeReplay(
            predictions_of(draft, answer),
            max_tokens=MAX_TOKENS,
            stop_ids=target.loaded.tokenizer.stop_ids,
        )
        expected.add(replay.run(FEW[0]))
    assert len(answers) == 2
    assert PointDatabase(folder.database).points == {FEW[0]: expected}


def test_another_size_of_tree_is_measured_when_it_comes(
    tmp_path: Path, pair: ModelPair, target: LLM, draft: LLM
) -> None:
    folder, subject = SearchFolder(tmp_path), subject_of(pair)
    finish(TreeSearch(folder, subject, FEW[:1]), target, draft)
    before = folder.times()
    assert before.target_ms.keys() == {1, 12} and before.draft_ms
    assert all(ms > 0 for ms in before.target_ms.values())
    finish(TreeSearch(folder, subject, [TreeParams(draft_batch_size=4)]), target, draft)
    after = folder.times()
    assert after.target_ms.keys() == {1, 4, 12}
    assert after.target_ms.items() > before.target_ms.items()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompts": ("another",)}, "about other prompts"),
        ({"max_tokens": 7}, "--num-tokens"),
        ({"chat": True}, "chat template"),
        ({"draft": ModelIdentity("target", 1, "0")}, "another draft model"),
        ({"target": ModelIdentity("target", 1, "0")}, "another target model"),
    ],
)
def test_points_of_different_searches_are_not_mixed(
    tmp_path: Path, pair: ModelPair, target: LLM, draft: LLM, change: dict[str, object], reason: str
) -> None:
    folder, subject = SearchFolder(tmp_path), subject_of(pair)
    TreeSearch(folder, subject, FEW[:1]).ask_target(target)
    with pytest.raises(UsageError, match=f"{reason}.*choose another folder"):
        TreeSearch(folder, replace(subject, **change), FEW[:1])


def test_points_of_an_unknown_search_are_not_used(tmp_path: Path, pair: ModelPair) -> None:
    PointDatabase(tmp_path / "database.jsonl").add(FEW[0], COUNTERS)
    with pytest.raises(UsageError, match=r"no search.json.*choose another folder"):
        TreeSearch(SearchFolder(tmp_path), subject_of(pair), FEW[:1])


def test_a_copy_of_a_model_is_the_same_model(tmp_path: Path, pair: ModelPair) -> None:
    copy = tmp_path / "other-name.gguf"
    copy.write_bytes(pair.target.read_bytes())
    assert ModelIdentity.of(resolve_model(copy)) == ModelIdentity.of(resolve_model(pair.target))
    changed = bytearray(copy.read_bytes())
    changed[-1] ^= 1
    copy.write_bytes(changed)
    assert ModelIdentity.of(resolve_model(copy)) != ModelIdentity.of(resolve_model(pair.target))


def test_models_of_different_vocabularies_are_no_pair(pair: ModelPair, smollm2: Path) -> None:
    check_pair(resolve_model(pair.target), resolve_model(pair.draft))
    with pytest.raises(UsageError, match="cannot draft for this model"):
        check_pair(resolve_model(pair.target), resolve_model(smollm2))


# The ranking

PHONE = StepTimes(target_ms={12: 62.867}, draft_ms=8.421)  # as the original's analysis assumed


def test_the_originals_score() -> None:
    score = tokens_per_s(TreeParams(), COUNTERS, PHONE)
    assert score == pytest.approx(25 * 1000 / (10 * 62.867 + (10 + 40) * 8.421))


def test_ranks() -> None:
    slow = replace(COUNTERS, num_draft_forwards=80)
    fast = replace(COUNTERS, num_generated_tokens=50)
    hot, cold = TreeParams(temperature=1.8), TreeParams(temperature=1.2)
    times = replace(PHONE, target_ms={1: 50.0, 12: 62.867})
    ranking = rank_points({hot: slow, TreeParams(): COUNTERS, cold: fast}, times)
    assert [point.params for point in ranking.points] == [cold, TreeParams(), hot]
    assert [point.rank for point in ranking.defaults] == [2]
    assert ranking.plain_tokens_per_s == pytest.approx(20)
    assert ranking.best.tokens_per_s == pytest.approx(tokens_per_s(cold, fast, times))


@pytest.mark.parametrize(
    ("times", "flag"), [(StepTimes({12: 1.0}), "--draft-ms"), (StepTimes({1: 1.0}, 1.0), "12=")]
)
def test_without_times_there_is_no_score(times: StepTimes, flag: str) -> None:
    with pytest.raises(UsageError, match=flag):
        rank_points({TreeParams(): COUNTERS}, times)


def test_nothing_tried_is_no_ranking() -> None:
    with pytest.raises(UsageError, match="no point has been tried"):
        rank_points({}, PHONE)


# The plot


def test_a_plot_shows_what_was_varied(tmp_path: Path) -> None:
    points = {
        params: replace(COUNTERS, num_generated_tokens=20 + index)
        for index, params in enumerate(
            islice(TreeGrid(temperature=(1.5,), p_base=(0.9,)).points(seed=0), 40)
        )
    }
    ranking = rank_points(points, PHONE)
    assert varied_parameters(ranking) == ["top_k", "max_fan_out", "min_prob"]
    plot_ranking(ranking, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    for word in ("top_k", "max_fan_out", "min_prob", "tokens/s"):
        assert f"<!-- {word} -->" in text
    assert "<!-- p_base -->" not in text


def test_a_single_point_can_be_drawn(tmp_path: Path) -> None:
    plot_ranking(rank_points({TreeParams(): COUNTERS}, PHONE), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_what_a_plot_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"choose \.png, \.svg or \.pdf"):
        check_plot(tmp_path / "plot.docx")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"pip install 'powerserve\[plots\]'"):
        check_plot(tmp_path / "plot.png")

"""The draft model: what it computes node by node, and the trees that grow from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from powerserve.backend.base import FloatArray, LoadedModel
from powerserve.backend.ggml.backend import GgmlBackend, GgmlOptions
from powerserve.backend.reference import ReferenceBackend
from powerserve.core import dtypes
from powerserve.core.errors import UsageError
from powerserve.evaluate.scoring import batch_logits
from powerserve.speculative.best_first import BestFirstGrowth
from powerserve.speculative.draft import DraftModel, top_logits
from powerserve.speculative.options import SpeculationOptions, TreeParams
from powerserve.speculative.tree import ROOT, TokenTree
from powerserve.speculative.vocabulary import check_same_vocabulary
from tiny_models import TinyModel, write_tiny_model
from trees import load

PROMPT = np.arange(5, 45, dtype=np.int32)
VOCAB_SIZE = TinyModel().vocab_size


@pytest.fixture(scope="module", params=["ggml", "reference"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LoadedModel]:
    path = write_tiny_model(tmp_path_factory.mktemp("draft") / "tiny.gguf", TinyModel("qwen2"))
    backend = ReferenceBackend() if request.param == "reference" else GgmlBackend(GgmlOptions(1))
    loaded = load(backend, path)
    yield loaded
    loaded.close()
    backend.close()


def drafting(model: LoadedModel, **changes: Any) -> DraftModel:
    settings = {"num_cells": 256, "context_size": 128, "batch_size": 16, "kv_dtype": dtypes.F32}
    return DraftModel(model, **(settings | changes))


def assert_close(logits: FloatArray, model: LoadedModel, tokens: list[int]) -> None:
    """Compare with the logits after a text that is computed at once."""
    found = logits.copy()  # the array belongs to the backend
    (expected,) = batch_logits(model, tokens, batch_size=128, kv_dtype=dtypes.F32)
    np.testing.assert_allclose(found, expected[-1], atol=2e-4)


def caught_up(draft: DraftModel, tokens: Any = PROMPT) -> tuple[Any, FloatArray]:
    state = draft.new_state()
    while (logits := draft.catch_up(state, tokens)) is None:
        pass
    return state, logits.copy()


def small_tree() -> tuple[TokenTree, list[list[int]]]:
    """A tree and its levels."""
    tree = TokenTree(int(PROMPT[-1]), max_depth=9)
    left, right = tree.add(ROOT, 60, 0.6), tree.add(ROOT, 70, 0.3)
    middle, far = tree.add(left, 61, 0.5), tree.add(right, 71, 0.5)
    last = tree.add(middle, 62, 0.5)
    return tree, [[left, right], [middle, far], [last]]


def test_a_long_prompt_is_computed_batch_by_batch(model: LoadedModel) -> None:
    draft = drafting(model)
    state = draft.new_state()
    assert draft.num_missing(state, PROMPT) == 40
    assert draft.catch_up(state, PROMPT) is None
    assert draft.catch_up(state, PROMPT) is None
    logits = draft.catch_up(state, PROMPT)
    assert logits is not None
    assert_close(logits, model, PROMPT.tolist())


def test_nodes_see_their_ancestors_and_nothing_else(model: LoadedModel) -> None:
    """Levels computed one after another give what each path gives by itself."""
    draft = drafting(model)
    state, _ = caught_up(draft)
    tree, levels = small_tree()
    for level in levels:
        results = draft.run_nodes([(state, tree, level)])
        assert results is not None
        for node, logits in zip(level, results[0].copy(), strict=True):
            path = [tree.token_ids[each] for each in tree.path(node)]
            assert_close(logits, model, [*PROMPT.tolist(), *path])


def test_trees_of_several_sequences_grow_in_one_run(model: LoadedModel) -> None:
    draft = drafting(model)
    prompts = [PROMPT, PROMPT[:7][::-1].copy()]
    states = [caught_up(draft, prompt)[0] for prompt in prompts]
    trees = [small_tree() for _ in prompts]
    forwards = draft.num_forwards
    groups = [(state, tree, levels[0]) for state, (tree, levels) in zip(states, trees, strict=True)]
    results = draft.run_nodes(groups)
    assert results is not None and draft.num_forwards == forwards + 1
    second = [logits[1].copy() for logits in results]
    for prompt, logits in zip(prompts, second, strict=True):
        assert_close(logits, model, [*prompt.tolist(), 70])


@pytest.mark.parametrize("accepted", [[], [60], [60, 61, 62], [70, 71], [60, 99]])
def test_what_was_accepted_need_not_be_computed_again(
    model: LoadedModel, accepted: list[int]
) -> None:
    draft = drafting(model)
    state, _ = caught_up(draft)
    tree, levels = small_tree()
    for level in levels:
        draft.run_nodes([(state, tree, level)])
    path, node = [], ROOT
    for token_id in accepted:
        node = tree.add(node, token_id, 0.1)  # 99 is in the tree, but was not computed
        path.append(node)
    draft.keep(state, tree, path)
    tokens = np.array([*PROMPT, *accepted, 33], np.int32)
    computed = len([token for token in accepted if token != 99])
    assert draft.num_missing(state, tokens) == len(tokens) - len(PROMPT) - computed
    logits = draft.catch_up(state, tokens)
    assert logits is not None
    assert_close(logits, model, tokens.tolist())
    draft.release(state)
    draft.clear_prefixes()
    assert draft.pool.num_free == draft.pool.num_cells


def test_a_later_sequence_uses_what_an_earlier_one_computed(model: LoadedModel) -> None:
    draft = drafting(model)
    state, _ = caught_up(draft)
    draft.release(state)
    longer = np.array([*PROMPT, 3, 4], np.int32)
    assert draft.num_missing(draft.new_state(), longer) == 2


def test_a_full_cache_stops_the_draft_and_nothing_else(model: LoadedModel) -> None:
    draft = drafting(model, batch_size=256, context_size=256)
    state, _ = caught_up(draft, np.arange(250, dtype=np.int32))
    other = draft.new_state()
    assert draft.catch_up(other, PROMPT) is None
    assert draft.pool.num_free == 6
    tree = TokenTree(1, max_depth=9)
    level = [tree.add(ROOT, token, 0.1) for token in range(7)]
    assert draft.run_nodes([(state, tree, level)]) is None
    assert draft.pool.num_free == 6


@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_the_original_tree_has_its_size_and_its_best_candidates(
    model: LoadedModel, count: int
) -> None:
    draft = drafting(model)
    state, logits = caught_up(draft)
    tree = TokenTree(int(PROMPT[-1]), max_depth=50)
    params = TreeParams(draft_batch_size=count)
    growth = BestFirstGrowth(params, vocab_size=VOCAB_SIZE, stop_ids=())
    growth.grow(tree, logits, draft, state)
    assert len(tree) == count
    if count > 1:
        ids, values = top_logits(logits, params.top_k, VOCAB_SIZE)
        shares = np.exp(values / params.temperature)
        assert tree.token_ids[1] == ids[0]
        assert tree.probabilities[1] == pytest.approx(shares[0] / shares.sum())
    for node in range(1, len(tree)):
        assert tree.probabilities[node] <= tree.probabilities[tree.parents[node]]


def test_the_original_tree_does_not_go_on_behind_a_stop_token(model: LoadedModel) -> None:
    draft = drafting(model)
    state, logits = caught_up(draft)
    best = int(logits.argmax())
    tree = TokenTree(int(PROMPT[-1]), max_depth=50)
    params = TreeParams(min_prob=0.0)
    BestFirstGrowth(params, vocab_size=VOCAB_SIZE, stop_ids=(best,)).grow(
        tree, logits, draft, state
    )
    assert tree.child(ROOT, best) is not None
    assert all(tree.token_ids[parent] != best for parent in tree.parents[1:])


def test_the_highest_logits_in_order() -> None:
    logits = np.array([0.0, 5.0, 2.0, 5.0, 9.0, -40.0], np.float32)
    ids, values = top_logits(logits, 3, vocab_size=4)
    assert (ids.tolist(), values.tolist()) == ([1, 3, 2], [5.0, 5.0, 2.0])
    assert top_logits(logits, 10, vocab_size=6)[0].tolist() == [4, 1, 3, 2, 0]


KNOWN = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a", "b", "ab"],
    "tokenizer.ggml.token_type": [1, 1, 1],
    "tokenizer.ggml.merges": ["a b"],
}
PADDED = {"tokenizer.ggml.tokens": ["a", "b", "ab", "[PAD3]"]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer.ggml.model": "llama"}, "of kind llama, not gpt2"),
        ({"tokenizer.ggml.tokens": ["a", "c", "ab"]}, "token 1 is 'c' there and 'b' here"),
        ({"tokenizer.ggml.merges": ["b a"]}, "other merges"),
        (PADDED | {"tokenizer.ggml.token_type": [1, 1, 1, 1]}, "has 4 tokens, not 3"),
    ],
)
def test_a_draft_with_other_tokens_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_same_vocabulary(KNOWN, KNOWN | changes, "small")
    with pytest.raises(UsageError, match="small cannot draft for this model"):
        check_same_vocabulary(KNOWN | changes, KNOWN, "small")


def test_padding_of_the_vocabulary_does_not_matter() -> None:
    padded = KNOWN | PADDED | {"tokenizer.ggml.token_type": [1, 1, 1, 5]}
    check_same_vocabulary(KNOWN, padded, "small")
    check_same_vocabulary(padded, KNOWN, "small")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"draft_batch_size": 0}, "draft_batch_size must be at least 1"),
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"min_prob": 1.5}, "min_prob must be within 0 and 1"),
        ({"p_base": float("nan")}, "p_base must be within"),
    ],
)
def test_impossible_tree_parameters(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        TreeParams(**changes)


def test_no_candidates_are_no_speculation() -> None:
    with pytest.raises(UsageError, match="at least 1 candidate"):
        SpeculationOptions(max_tokens=0)

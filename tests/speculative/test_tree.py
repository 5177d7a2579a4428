"""The token tree: merging, choosing and laying out candidates."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from powerserve.speculative.tree import ROOT, TokenTree

# Each candidate: (which earlier node is its parent, token, probability given the parent)
CANDIDATES = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 5), st.floats(0, 1)), max_size=30
)


def grown(candidates: list[tuple[int, int, float]]) -> TokenTree:
    tree = TokenTree(root_token=9, max_depth=100)
    for parent, token_id, probability in candidates:
        tree.add(parent % len(tree), token_id, probability)
    return tree


def test_proposers_that_agree_share_a_node_with_the_greater_probability() -> None:
    tree = TokenTree(1, max_depth=5)
    first = tree.add(ROOT, 7, 0.25)
    assert tree.add(ROOT, 7, 0.5) == first
    child = tree.add(first, 8, 0.5)
    assert (len(tree), tree.probabilities[first], tree.probabilities[child]) == (3, 0.5, 0.25)
    assert tree.path(child) == [first, child]


@given(CANDIDATES, st.integers(0, 30))
def test_the_best_candidates_come_with_their_parents(
    candidates: list[tuple[int, int, float]], count: int
) -> None:
    tree = grown(candidates)
    chosen = tree.best(count)
    assert len(chosen) == min(count, len(tree) - 1)
    assert all(tree.parents[node] in {ROOT, *chosen} for node in chosen)
    left_out = set(range(1, len(tree))) - set(chosen)
    if chosen and left_out:
        worst = min(tree.probabilities[node] for node in chosen)
        assert worst >= max(tree.probabilities[node] for node in left_out)


@given(CANDIDATES, st.integers(0, 30))
def test_a_flat_tree_is_the_same_tree(candidates: list[tuple[int, int, float]], count: int) -> None:
    tree = grown(candidates)
    flat = tree.flatten(tree.best(count))
    assert flat.nodes[0] == ROOT and flat.parents[0] == -1
    for row, node in enumerate(flat.nodes[1:], start=1):
        parent = int(flat.parents[row])
        assert 0 <= parent < row
        assert flat.nodes[parent] == tree.parents[node]
        assert flat.depths[row] == flat.depths[parent] + 1
        assert flat.child_row(parent, int(flat.token_ids[row])) == row
    assert flat.child_row(0, 12345) is None


def test_the_most_probable_path_is_laid_out_in_one_piece() -> None:
    tree = TokenTree(0, max_depth=9)
    unlikely = tree.add(ROOT, 1, 0.2)
    likely = tree.add(ROOT, 2, 0.8)
    after_unlikely = tree.add(unlikely, 3, 0.9)
    after_likely = tree.add(likely, 4, 0.9)
    flat = tree.flatten(tree.best(4))
    assert flat.nodes == [ROOT, likely, after_likely, unlikely, after_unlikely]

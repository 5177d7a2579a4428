"""The reference backend over whole tiny models: who sees what, cells, and wrong input."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest

from batches import Tokens, batch_of, one_slice
from powerserve.backend.base import Batch
from powerserve.backend.checks import check_weights
from powerserve.backend.reference.backend import ReferenceModel
from powerserve.core import dtypes
from powerserve.core.dtypes import DType
from powerserve.core.errors import (
    BackendError,
    MemoryLimitError,
    ModelFileError,
    PowerServeError,
    UnsupportedModelError,
)
from powerserve.graph import Graph, Weight
from tiny_models import TinyModel
from tiny_reference import ReferenceRunner, load_tiny

PROMPT = [5, 17, 200, 33, 8, 250, 71]


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> object:
    tiny = TinyModel(request.param, tied=request.param == "qwen2")
    return load_tiny(tmp_path_factory.mktemp("models"), tiny)


@pytest.fixture
def runner(model: ReferenceModel) -> ReferenceRunner:
    return ReferenceRunner(model)


def logits_of(model: ReferenceModel, ids: list[int]) -> npt.NDArray[np.float32]:
    """The whole prompt in one step, in the cells 0, 1, 2, …"""
    return ReferenceRunner(model).run(batch_of(Tokens(ids, range(len(ids)))))


def assert_close(got: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> None:
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_a_prompt_in_chunks_gives_the_same_logits(
    model: ReferenceModel, runner: ReferenceRunner
) -> None:
    chunks = [
        runner.run(batch_of(Tokens(PROMPT[:3], [0, 1, 2]))),
        runner.run(batch_of(Tokens(PROMPT[3:6], [3, 4, 5], context=[0, 1, 2]))),
        runner.run(batch_of(Tokens(PROMPT[6:], [6], context=range(6)))),
    ]
    assert_close(np.concatenate(chunks), logits_of(model, PROMPT))


def test_it_does_not_matter_which_cells_are_used(
    model: ReferenceModel, runner: ReferenceRunner
) -> None:
    cells = [60, 3, 41, 7, 22, 0, 9]
    runner.run(batch_of(Tokens(PROMPT[:4], cells[:4])))
    got = runner.run(batch_of(Tokens(PROMPT[4:], cells[4:], context=[7, 60, 41, 3])))
    assert_close(got, logits_of(model, PROMPT)[4:])


def test_each_path_of_a_tree_is_as_if_it_were_alone(
    model: ReferenceModel, runner: ReferenceRunner
) -> None:
    runner.run(batch_of(Tokens(PROMPT[:3], [0, 1, 2])))
    # 0 ── 1 ── 3
    #   └─ 2 ── 4      and 5, another continuation of the prompt
    ids, parents, depths = [10, 20, 30, 40, 50, 60], [-1, 0, 0, 1, 2, -1], [0, 1, 1, 2, 2, 0]
    tree = Tokens(
        ids, range(8, 14), context=[0, 1, 2], parents=parents, positions=[3 + d for d in depths]
    )
    got = runner.run(batch_of(tree))
    for path in ([0, 1, 3], [0, 2, 4], [5]):
        alone = logits_of(model, PROMPT[:3] + [ids[token] for token in path])
        assert_close(got[path], alone[3:])


def test_sequences_in_one_batch_do_not_see_each_other(
    model: ReferenceModel, runner: ReferenceRunner
) -> None:
    other = [99, 98, 97]
    runner.run(batch_of(Tokens(PROMPT[:4], [0, 2, 4, 6])))
    got = runner.run(
        batch_of(Tokens(other, [1, 3, 5]), Tokens(PROMPT[4:], [7, 8, 9], context=[0, 2, 4, 6]))
    )
    assert_close(got[:3], logits_of(model, other))
    assert_close(got[3:], logits_of(model, PROMPT)[4:])


@pytest.mark.parametrize("rows", [[], [6], [0, 2, 3]], ids=str)
def test_only_wanted_rows_are_returned(
    model: ReferenceModel, runner: ReferenceRunner, rows: list[int]
) -> None:
    got = runner.run(batch_of(Tokens(PROMPT, range(7)), output_rows=rows))
    assert got.shape == (len(rows), model.config.vocab_size)
    assert_close(got, logits_of(model, PROMPT)[rows])


def test_a_cell_that_was_never_written_shows(runner: ReferenceRunner) -> None:
    got = runner.run(batch_of(Tokens([1], [0], context=[5])))
    assert np.isnan(got).all()


def test_copied_cells_replace_the_originals(model: ReferenceModel, runner: ReferenceRunner) -> None:
    runner.run(batch_of(Tokens(PROMPT[:3], [0, 1, 2])))
    runner.cache.copy(np.array([0, 2]), np.array([30, 31]))
    got = runner.run(batch_of(Tokens(PROMPT[3:], range(10, 14), context=[30, 1, 31])))
    assert_close(got, logits_of(model, PROMPT)[3:])


@pytest.mark.parametrize("dtype", [dtypes.F32, dtypes.F16], ids=str)
def test_saved_cells_continue_in_another_cache(model: ReferenceModel, dtype: DType) -> None:
    first, second = (ReferenceRunner(model, 16, dtype) for _ in range(2))
    first.run(batch_of(Tokens(PROMPT[:3], [0, 1, 2])))
    second.cache.restore(np.array([9, 7, 8]), first.cache.save(np.array([0, 1, 2])))
    expected = first.run(batch_of(Tokens(PROMPT[3:], range(3, 7), context=[0, 1, 2])))
    got = second.run(batch_of(Tokens(PROMPT[3:], range(4), context=[9, 7, 8])))
    np.testing.assert_array_equal(got, expected)


def test_saved_cells_must_fit(runner: ReferenceRunner) -> None:
    content = runner.cache.save(np.array([0, 1]))
    with pytest.raises(BackendError, match=f"{len(content)} bytes, but 3 cells"):
        runner.cache.restore(np.array([0, 1, 2]), content)


def test_an_f16_cache_takes_half_the_memory_and_rounds(model: ReferenceModel) -> None:
    exact, rounded = ReferenceRunner(model), ReferenceRunner(model, dtype=dtypes.F16)
    config = model.config
    assert exact.cache.size_bytes == 2 * config.num_layers * 64 * config.kv_dim * 4
    assert rounded.cache.size_bytes * 2 == exact.cache.size_bytes
    step = batch_of(Tokens(PROMPT, range(7)))
    difference = np.abs(rounded.run(step) - exact.run(step)).max()
    assert 0 < difference < 0.05


def test_other_cache_types_are_refused(model: ReferenceModel) -> None:
    with pytest.raises(BackendError, match="F32 or F16, not Q8_0"):
        model.new_cache(8, dtypes.Q8_0)


def test_a_cache_too_large_for_memory_is_an_error_of_its_own(model: ReferenceModel) -> None:
    with pytest.raises(MemoryLimitError, match="smaller context"):
        model.new_cache(1 << 45, dtypes.F32)


GOOD = batch_of(Tokens([1, 2, 3], [0, 1, 2]))


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        (batch_of(Tokens([1] * 5, range(5))), "5 tokens exceed"),
        (batch_of(Tokens([1, 2], [0, 1]), output_rows=[0, 1, 1, 1]), "too many output rows"),
        (replace(GOOD, positions=GOOD.positions[:2]), "lengths differ"),
        (batch_of(Tokens([-1], [0])), "outside the vocabulary"),
        (batch_of(Tokens([100_000], [0])), "outside the vocabulary"),
        (replace(GOOD, output_rows=np.array([3], np.int32)), "outside the batch"),
        (batch_of(Tokens([1], [8])), "reaches past its shape"),
        (batch_of(Tokens([1, 2], [4, 4])), "share a cell"),
        (batch_of(Tokens([1], [0], context=[8])), "reaches past its shape"),
        (batch_of(Tokens([1, 2], [0, 1], parents=[1, -1])), "precede"),
        (replace(GOOD, slices=[replace(GOOD.slices[0], start=1)]), "follow each other"),
        (replace(GOOD, slices=[]), "number of slices"),
        (replace(GOOD, slices=[replace(GOOD.slices[0], stop_cell=1)]), "range of its slice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_inconsistent_batch_is_a_bug(model: ReferenceModel, batch: Batch, reason: str) -> None:
    executable = model.compile(one_slice(4, 8, 3), model.new_cache(16, dtypes.F32))
    with pytest.raises(ValueError, match=reason):
        executable.run(batch)


def test_a_shape_cannot_see_more_cells_than_the_cache_has(model: ReferenceModel) -> None:
    with pytest.raises(BackendError, match="cell 16 is outside"):
        model.compile(one_slice(1, 17, 1), model.new_cache(16, dtypes.F32))


@dataclass(frozen=True)
class FakeTensor:
    shape: tuple[int, ...] = (3, 4)
    dtype: DType = dtypes.F32
    size_bytes: int = 48

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        return np.zeros(self.size_bytes, np.uint8)


@pytest.mark.parametrize(
    ("tensor", "error", "reason"),
    [
        (None, ModelFileError, "no tensor w"),
        (FakeTensor((4, 3)), ModelFileError, r"w has shape \[4, 3\], .* need \[3, 4\]"),
        (FakeTensor(dtype=dtypes.I32), UnsupportedModelError, "w has type I32"),
        (FakeTensor(dtype=dtypes.Q4_0), ModelFileError, "4 elements, .* Q4_0 blocks"),
        (FakeTensor(size_bytes=44), ModelFileError, "44 bytes instead of 48"),
    ],
)
def test_unusable_weights_are_named(
    tensor: FakeTensor | None, error: type[PowerServeError], reason: str
) -> None:
    graph = Graph()
    graph.embedding(graph.token_ids, Weight("w", (3, 4)))
    with pytest.raises(error, match=reason):
        check_weights(graph, {} if tensor is None else {"w": tensor})

"""Where an answer with speculation differs from plain decoding: how near the decision was.

Kernels add in another order when a step has more tokens, so logits differ in their last digits. A
difference of the answers is therefore in order if, and only if, two tokens were nearly equal there.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from contestants import PLAIN
from prompts import Prompt
from rounds import Record

from powerserve.core.dtypes import DType
from powerserve.evaluate.scoring import batch_logits
from powerserve.llm import LLM

_BATCH_SIZE = 64  # tokens whose logits are in memory at a time


@dataclass(frozen=True, slots=True)
class Difference:
    """The first token at which an answer leaves plain decoding's."""

    workload: str
    prompt: str
    contestant: str
    position: int  # in the answer
    gap: float  # between the two tokens' logits, computed after the same tokens
    usual_gap: float  # between best and second best: the median over the answer so far


def find_differences(llm: LLM, records: Sequence[Record]) -> list[Difference]:
    """The differences of all answers of the first round."""
    first = [record for record in records if record.round == 0 and record.run.token_ids]
    plain = {record.prompt: record.run.token_ids for record in first if record.contestant == PLAIN}
    differences = []
    for record in first:
        position = first_difference(plain[record.prompt], record.run.token_ids)
        if position is not None:
            differences.append(_difference(llm, record, plain[record.prompt], position))
    return differences


def first_difference(left: Sequence[int], right: Sequence[int]) -> int | None:
    """The first position at which two answers differ; None if one continues the other."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((position for position, (a, b) in pairs if a != b), None)


def _difference(llm: LLM, record: Record, plain: Sequence[int], position: int) -> Difference:
    own = record.run.token_ids
    rows = list(_rows(llm, record.prompt, plain[:position], llm.loaded.options.kv_dtype))
    gap = abs(float(rows[-1][plain[position]]) - float(rows[-1][own[position]]))
    usual_gap = statistics.median(_lead(row) for row in rows)
    prompt = record.prompt
    return Difference(prompt.workload, prompt.name, record.contestant, position, gap, usual_gap)


def _rows(
    llm: LLM, prompt: Prompt, answer: Sequence[int], kv_dtype: DType
) -> Iterator[np.ndarray[tuple[int], np.dtype[np.float32]]]:
    """The logits [vocab] of each token of the answer and of the one after it."""
    tokens = [*prompt.token_ids, *answer]
    batches = batch_logits(llm.loaded.model, tokens, batch_size=_BATCH_SIZE, kv_dtype=kv_dtype)
    start = 0
    for logits in batches:
        for row in logits[max(0, len(prompt.token_ids) - 1 - start) :]:
            yield row.copy()
        start += len(logits)


def _lead(logits: np.ndarray[tuple[int], np.dtype[np.float32]]) -> float:
    second, best = np.partition(logits, -2)[-2:]
    return float(best - second)

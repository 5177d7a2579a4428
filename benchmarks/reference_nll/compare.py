"""The same predictions as llama.cpp: `python compare.py MODEL.gguf REFERENCE.json [KV_TYPE …]`.

REFERENCE holds what llama.cpp made of a text: `tokens`, `nll` of each token after the first in
nats, `top1` the likeliest next tokens, `margin` their lead over the second. Quantised models differ
a little from one kernel to the next, so the mean is compared, and the best token where it is clear.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from powerserve import LLM
from powerserve.cli.options import KV_TYPES
from powerserve.core.dtypes import DType
from powerserve.engine.loader import LoadOptions
from powerserve.evaluate.conditions import describe_kernels
from powerserve.evaluate.scoring import batch_logits, token_nll

BATCH_SIZE = 512
CLEAR_MARGIN = 1.0  # nats
TOLERANCE = 0.02  # nats of the mean


def main() -> int:
    """Print one table row for each KV type; 1 if one is too far off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("kv_types", nargs="*", choices=[*KV_TYPES], default="f16")
    arguments = parser.parse_args()
    golden = json.loads(arguments.reference.read_text())
    kv_types = [arguments.kv_types] if isinstance(arguments.kv_types, str) else arguments.kv_types
    with LLM(arguments.model, LoadOptions(context_size=len(golden["tokens"]) + 1)) as llm:
        kernels = describe_kernels(llm.loaded.backend)
        system = f"{kernels.version} ({kernels.origin})"
        rows = [score(llm, golden, kv_type) for kv_type in kv_types]
    print("| model | ggml | KV | mean NLL | llama.cpp | difference | largest | best, if clear |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    for kv_type, (text, _) in zip(kv_types, rows, strict=True):
        print(f"| {arguments.model.stem} | {system} | {kv_type} | {text} |")
    return 0 if all(good for _, good in rows) else 1


def score(llm: LLM, golden: dict[str, list[float]], kv_type: str) -> tuple[str, bool]:
    """(the row's figures, whether they are close enough)"""
    nll, best = predictions(llm, [int(token) for token in golden["tokens"]], KV_TYPES[kv_type])
    difference = nll.mean() - np.mean(golden["nll"])
    largest = np.abs(nll - np.array(golden["nll"])).max()
    clear = np.array(golden["margin"]) > CLEAR_MARGIN
    equal = int((best == np.array(golden["top1"]))[clear].sum())
    figures = f"{nll.mean():.4f} | {np.mean(golden['nll']):.4f} | {difference:+.4f}"
    text = f"{figures} | {largest:.2f} | {equal} of {clear.sum()}"
    return text, abs(difference) < TOLERANCE and equal == clear.sum()


def predictions(
    llm: LLM, tokens: list[int], kv_dtype: DType
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], np.ndarray[tuple[int], np.dtype[np.intp]]]:
    """NLL of tokens 1 …, and the likeliest token after each."""
    nll, best = [], []
    batches = batch_logits(llm.loaded.model, tokens, batch_size=BATCH_SIZE, kv_dtype=kv_dtype)
    for index, logits in enumerate(batches):
        start = index * BATCH_SIZE + 1
        targets = np.array(tokens[start : start + BATCH_SIZE], np.int32)
        nll.append(token_nll(logits, targets))
        best.append(logits.argmax(axis=1))
    return np.concatenate(nll), np.concatenate(best)


if __name__ == "__main__":
    raise SystemExit(main())

"""Time the sampler: `python benchmarks/sampler.py` prints median microseconds per token.

The logits are normal with a standard deviation of 3, which resembles a language model's; the
whole chains include everything `SamplerChain.sample` does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from powerserve.sampler import SamplerChain, SamplingParams
from powerserve.sampler.candidates import Candidates, Floats
from powerserve.sampler.penalties import penalised
from powerserve.sampler.randomness import draw
from powerserve.sampler.stages import min_p, temperature, top_k, top_p, typical_p, xtc
from powerserve.sampler.token_mask import masked

VOCAB_SIZES = (49_152, 151_936)  # SmolLM2, Qwen2
REPETITIONS = 300
OFF = SamplingParams(temperature=1.0, top_k=0, top_p=1.0)
REPEAT = {"repeat_penalty": 1.1}


def median_us(run: Callable[[], object]) -> float:
    """Return the median duration of `run` in microseconds, warmed up."""
    durations_s = []
    for _ in range(REPETITIONS):
        start_s = time.perf_counter()
        run()
        durations_s.append(time.perf_counter() - start_s)
    return statistics.median(durations_s[REPETITIONS // 10 :]) * 1e6


def stages(logits: Floats) -> dict[str, Callable[[], object]]:
    """Each stage alone: on the whole vocabulary, then on what top-k 40 leaves."""
    everything = Candidates.whole_vocabulary(logits)
    best = top_k(everything, 40)
    weights = everything.weights()
    window = np.arange(64)
    mask = np.random.default_rng(1).random(len(logits)) < 0.5
    packed = np.packbits(mask, bitorder="little").view(np.uint32)
    return {
        "argmax": logits.argmax,
        "grammar mask, boolean": partial(masked, logits, mask),
        "grammar mask, packed": partial(masked, logits, packed),
        "penalties, 64 tokens": partial(penalised, logits[:64], window + 1, OFF.replace(**REPEAT)),
        "top-k 40": partial(top_k, everything, 40),
        "top-k 1000": partial(top_k, everything, 1000),
        "typical 0.95": partial(typical_p, everything, 0.95),
        "top-p 0.95": partial(top_p, everything, 0.95),
        "min-p 0.05": partial(min_p, everything, 0.05),
        "XTC 0.1": partial(xtc, everything, 0.1),
        "temperature": partial(temperature, everything, 0.8),
        "softmax": everything.weights,
        "draw": partial(draw, weights, 0.5),
        "40 left: typical 0.95": partial(typical_p, best, 0.95),
        "40 left: top-p 0.95": partial(top_p, best, 0.95),
        "40 left: min-p 0.05": partial(min_p, best, 0.05),
        "40 left: temperature": partial(temperature, best, 0.8),
        "40 left: draw": partial(draw, best.weights(), 0.5),
    }


def chains(logits: Floats) -> dict[str, Callable[[], object]]:
    """Whole chains, as requests use them."""
    settings = {
        "greedy": OFF.replace(temperature=0.0),
        "greedy, repeat penalty": OFF.replace(temperature=0.0, **REPEAT),
        "defaults": SamplingParams(),
        "defaults, repeat penalty": SamplingParams(**REPEAT),
        "defaults, 5 logprobs": SamplingParams(logprobs=5),
        "top-p 0.95, T 0.8": OFF.replace(temperature=0.8, top_p=0.95),
        "min-p 0.05, T 0.8": OFF.replace(temperature=0.8, min_p=0.05),
        "T 0.8": OFF.replace(temperature=0.8),
    }
    runs: dict[str, Callable[[], object]] = {}
    for name, params in settings.items():
        chain = SamplerChain(
            params.replace(seed=1),
            vocab_size=len(logits),
            eos_ids=(),
            newline_id=None,
            prompt=range(64),
        )
        runs[f"chain: {name}"] = partial(chain.sample, logits)
    runs["copy of a chain with 64 tokens"] = make_copyable(len(logits)).copy
    return runs


def make_copyable(vocab_size: int) -> SamplerChain:
    """Return a chain whose penalty window is full."""
    params = SamplingParams(seed=1, **REPEAT)
    return SamplerChain(
        params, vocab_size=vocab_size, eos_ids=(), newline_id=None, prompt=range(64)
    )


def main() -> None:
    """Print one row per stage and chain, one column per vocabulary."""
    columns = []
    for vocab_size in VOCAB_SIZES:
        logits = np.random.default_rng(0).normal(scale=3.0, size=vocab_size).astype(np.float32)
        runs = stages(logits) | chains(logits)
        columns.append({name: median_us(run) for name, run in runs.items()})
    print("median microseconds".ljust(34), *(f"{size:>10,}" for size in VOCAB_SIZES))
    for name in columns[0]:
        print(name.ljust(34), *(f"{column[name]:10.1f}" for column in columns))


if __name__ == "__main__":
    main()

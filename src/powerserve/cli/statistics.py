"""The lines that the original prints about a run; users parse them."""

from __future__ import annotations

from typing import TextIO

from powerserve.core.machine import process_memory
from powerserve.engine.generation import Completion
from powerserve.speculative.options import SpeculationCounters

MEBIBYTE = 2**20
SHOWN_PROMPT_CHARS = 50


def info(text: str, stream: TextIO) -> None:
    """One line in the original's log format."""
    print(f"[INFO ] {text}", file=stream, flush=True)


def memory_line(stage: str) -> str:
    """Virtual and resident memory after a stage of loading."""
    virtual, resident = process_memory()
    return (
        f"after {stage} init: [Memory(MB)] VMS: {virtual // MEBIBYTE}, RSS: {resident // MEBIBYTE}"
    )


def prompt_line(prompt: str) -> str:
    """The prompt, quoted, its first 50 characters."""
    omitted = len(prompt) - SHOWN_PROMPT_CHARS
    tail = f" (omit {omitted} chars)" if omitted > 0 else ""
    return f'prompt      : "{prompt[:SHOWN_PROMPT_CHARS]}"{tail}'


def speed_lines(completion: Completion) -> list[str]:
    """How fast prefill and decode were.

    Prefill computes the whole prompt (but for what was cached) and ends with the first token;
    decode makes the tokens after it. The original counted the prompt's last token to decode.
    """
    timings = completion.timings
    num_prefill = completion.num_prompt_tokens - completion.num_cached_tokens
    num_decode = max(0, len(completion.token_ids) - 1)
    prefill_s, decode_s = timings.prefill_s, timings.decode_s
    return [
        f"prefill time: {prefill_s:.3f} s",
        f"prefill speed ({num_prefill} tokens): {_rate(num_prefill, prefill_s)} tokens/s",
        f"decode speed ({num_decode} tokens): {_rate(num_decode, decode_s)} tokens/s",
        f"total speed: {_rate(num_prefill + num_decode, prefill_s + decode_s)} tokens/s",
    ]


def speculation_lines(counters: SpeculationCounters) -> list[str]:
    """The original's block about the token tree; 0 where it divided by zero."""
    return [
        "Speculative token tree statistics:",
        f"- {counters.num_iterations} iterations, {counters.num_generated_tokens} generated tokens",
        f"- {counters.tokens_per_iteration:.3f} tokens/iteration",
        f"- {counters.forwards_per_iteration:.3f} draft-forwards/iteration",
        f"- Accept ratio: {counters.acceptance * 100:.3f}%",
        f"- Draft effective ratio: {counters.draft_efficiency * 100:.3f}%",
    ]


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds:.3f}" if seconds > 0 else "0.000"

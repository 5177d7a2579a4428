"""The lines that the original prints about a run; users parse them."""

from __future__ import annotations

import sys
from typing import TextIO

from powerserve.core.machine import process_memory
from powerserve.engine.generation import Completion

MEBIBYTE = 2**20
SHOWN_PROMPT_CHARS = 50


def info(text: str, stream: TextIO) -> None:
    """One line in the original's log format."""
    print(f"[INFO ] {text}", file=stream, flush=True)


def warn(text: str) -> None:
    """One line in the original's log format, on standard error."""
    print(f"[WARN ] {text}", file=sys.stderr, flush=True)


def no_speculation(draft_name: str) -> str:
    """What to say about a draft model that was asked for."""
    return f"speculation is not available yet: the draft model {draft_name} is not used"


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


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds:.3f}" if seconds > 0 else "0.000"

"""Compile one grammar in a process of its own, which it may hang, fill or crash.

Some short schemas and grammars take exponential time or overflow the native stack of llguidance,
whose own limits do not cover that. So each grammar is tried here first:
`python grammar_probe.py KIND < text`. The limits on time and memory are set by this process
for itself. Output: the grammar as llguidance wants it; on standard error, why it is refused.

The file imports nothing of PowerServe, so that it starts fast.
"""

from __future__ import annotations

import re
import sys
import threading
from contextlib import suppress
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from

CPU_LIMIT_S = 3
MEMORY_LIMIT_BYTES = 768 << 20  # of address space
# What compiles on a small stack surely does on the larger ones of the threads that serve.
STACK_BYTES = 1 << 20
REFUSED = 3  # exit status

# Spaces between JSON tokens: enough for any indented layout, too few to fill an answer with.
WHITESPACE = r"[ ]{1,2}|\r?\n[ \t]{0,20}"

_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)")


def parser_limits() -> LLParserLimits:
    """What one grammar may cost llguidance, when compiled and per token."""
    return LLParserLimits(
        initial_lexer_fuel=1_000_000,  # about 20 ms
        step_lexer_fuel=200_000,  # about 15 ms
        step_max_items=5_000,  # about 30 ms; 500 optional properties need 2,000
        max_lexer_states=50_000,  # about 10 MB
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def compiled_text(kind: str, text: str) -> str:
    """The grammar in llguidance's own format; raises ValueError with the reason if it is wrong."""
    if kind in ("json_schema", "json_object"):
        schema = text if kind == "json_schema" else '{"type": "object"}'
        defaults: Any = {"whitespace_pattern": WHITESPACE}
        return LLMatcher.grammar_from_json_schema(schema, defaults)
    if kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    if kind == "gbnf":
        return grammar_from("gbnf", _ESCAPE.sub(_plain_escape, text))
    return grammar_from("lark", text)


def _plain_escape(escape: re.Match[str]) -> str:
    """The same character without `\\u`, whose leading zeros llguidance's converter would lose."""
    code = int(escape[1] or escape[2] or "0", 16)
    if not code or 0xD800 <= code < 0xE000 or code > sys.maxunicode:
        return escape[0]  # another escape, or no character
    return f"\\x{code:02x}" if code < 0x80 else chr(code)


def main(kind: str) -> int:
    """Try the grammar on standard input; returns the exit status."""
    _limit_resources()
    text = sys.stdin.buffer.read().decode()
    try:
        compiled = compiled_text(kind, text)
        reason = _first_step_error(compiled)
    except (ValueError, RecursionError) as error:
        reason = str(error)
    if reason:
        sys.stderr.write(reason)
        return REFUSED
    sys.stdout.buffer.write(compiled.encode())
    return 0


def _first_step_error(compiled: str) -> str:
    """Compile and compute one mask over single bytes; the reason why that fails, if it does."""
    matcher = LLMatcher(LLTokenizer("byte"), compiled, log_level=0, limits=parser_limits())
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher.get_error()


def _limit_resources() -> None:
    try:
        import resource
    except ImportError:  # Windows: only the parent's time limit holds
        return
    for kind, amount in (
        (resource.RLIMIT_CPU, CPU_LIMIT_S),
        (resource.RLIMIT_AS, MEMORY_LIMIT_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        with suppress(ValueError, OSError):  # a system that knows the limit but cannot set it
            resource.setrlimit(kind, (amount if hard < 0 else min(amount, hard), hard))


def _main_on_small_stack() -> int:
    statuses: list[int] = []
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=lambda: statuses.append(main(sys.argv[1])))
    thread.start()
    thread.join()
    return statuses[0] if statuses else 1


if __name__ == "__main__":
    sys.exit(_main_on_small_stack())

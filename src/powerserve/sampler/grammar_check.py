"""Whether a grammar can be compiled here, found out where it can do no harm."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

from powerserve.core.errors import PowerServeError, UsageError
from powerserve.sampler.grammar import Grammar

# The processor time is what counts; this is for machines that are busy with something else.
_WAIT_S = 30.0
_MAX_REASON = 300  # characters
_CRYPTIC = {
    "NoExtensionBias": "no text satisfies it",
    "Expecting object schema to apply options": "it has to be a JSON object",
}
_OUT_OF_TIME = {-signal.SIGKILL, -getattr(signal, "SIGXCPU", signal.SIGTERM)}


def checked(grammar: Grammar) -> str:
    """Compile `grammar` in a process of its own; returns it in llguidance's format.

    Takes about 0.1 s, of which most is the start of the process. Raises UsageError with the reason
    if it is wrong, or takes too much time, memory or nesting to compile.
    """
    probe = Path(__file__).with_name("grammar_probe.py")
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(probe), grammar.kind],
            input=grammar.text.encode("utf-8", "replace"),
            capture_output=True,
            timeout=_WAIT_S,
        )
    except subprocess.TimeoutExpired:
        raise UsageError(_too_complex(grammar, "takes too long")) from None
    except OSError as error:
        raise PowerServeError(f"the grammar cannot be checked: {error}") from None
    if done.returncode == 0:
        return done.stdout.decode()
    raise UsageError(_refusal(grammar, done))


def _refusal(grammar: Grammar, done: subprocess.CompletedProcess[bytes]) -> str:
    from powerserve.sampler.grammar_probe import REFUSED

    if done.returncode == REFUSED:
        return f"the {grammar.name} cannot be used: {readable_reason(done.stderr.decode())}"
    if done.returncode in _OUT_OF_TIME:
        return _too_complex(grammar, "takes too long")
    return _too_complex(grammar, "needs too much memory or nests too deeply")


def _too_complex(grammar: Grammar, what: str) -> str:
    return f"the {grammar.name} is too complex: compiling it {what}; make it smaller or simpler"


def readable_reason(message: str) -> str:
    """What helps in llguidance's message, in one line: no dumps of state, no listing of source."""
    text = re.split(r"<state>|<non-verbose/>|\n\s*\d+ \| ", message)[0]
    text = re.sub(r"(.)\1{9,}", r"\1\1…", text)
    text = _CRYPTIC.get(text.strip(), " ".join(text.split())).rstrip(".")
    if len(text) <= _MAX_REASON:
        return text
    return f"{text[: _MAX_REASON // 2]} … {text[-_MAX_REASON // 2 :]}"

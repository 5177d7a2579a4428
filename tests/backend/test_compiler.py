"""What a compiler's failure is made into."""

from __future__ import annotations

from powerserve.backend.compiler import likely_reason


def test_the_likely_reason_is_the_first_error() -> None:
    assert likely_reason("a\nCMake Error at x\nERROR: Failed\n") == "CMake Error at x"
    assert likely_reason("something\nlast words\n\n") == "last words"
    assert likely_reason("") == "no output"

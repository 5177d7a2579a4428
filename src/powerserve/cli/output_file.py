"""Where a command may write what it makes."""

from __future__ import annotations

from pathlib import Path

from powerserve.core.errors import UsageError


def check_target(target: Path, *sources: Path | None) -> None:
    """Make sure, before long work, that `target` can be a file and is none of the command's inputs.

    Raises UsageError.
    """
    if target.is_dir() or not target.resolve().parent.is_dir():
        raise UsageError(f"{target} cannot be written: name a file in a folder that exists")
    for source in sources:
        if source is not None and target.exists() and target.samefile(source):
            raise UsageError(f"{target} would be overwritten; name another file for the result")

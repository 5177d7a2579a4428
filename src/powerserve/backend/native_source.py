"""The C++ sources of native/, which come with the package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def native_source(name: str) -> Path | None:
    """The folder native/`name` of an installed wheel or a checkout; None if it is not there."""
    folders = (root / "native" / name for root in (_PACKAGE, _PACKAGE.parents[1]))
    return next((folder for folder in folders if folder.is_dir()), None)

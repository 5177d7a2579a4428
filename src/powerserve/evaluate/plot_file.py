"""Writing plots to files; matplotlib is imported only then."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from powerserve.core.errors import UsageError
from powerserve.storage import atomic
from powerserve.storage.copying import file_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_plot(path: Path) -> None:
    """Raise UsageError if a plot could not be written to `path` in the format of its suffix."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "plots need matplotlib, which is not installed: pip install 'powerserve[plots]'"
        ) from None
    known = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix.lstrip(".").lower() not in known:
        raise UsageError(f"{path} does not end in a format for plots; choose .png, .svg or .pdf")


def write_plot(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix. Raises UsageError."""
    image = BytesIO()
    figure.savefig(image, format=path.suffix.lstrip(".").lower(), dpi=150)
    with file_errors(f"{path} cannot be written"):
        atomic.write_bytes(path, image.getvalue())

"""List the models in the store."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from powerserve.storage.progress import format_bytes
from powerserve.storage.store import ModelStore, StoreEntry


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("-v", "--verbose", action="store_true", help="show where the files are")
    parser.add_argument("--json", action="store_true", help="print JSON")


def execute(arguments: argparse.Namespace) -> int:
    """Print a table, or an array of objects with --json."""
    store = ModelStore()
    entries = store.entries()
    if arguments.json:
        print(json.dumps([_as_json(entry) for entry in entries], indent=2))
    elif entries:
        print(_table([_row(entry, arguments.verbose) for entry in entries], arguments.verbose))
    else:
        print(
            f"No models yet in {store.folder}; `powerserve pull smollm2-135m` fetches a small one."
        )
    return 0


def _as_json(entry: StoreEntry) -> dict[str, object]:
    return {
        "name": entry.name,
        "size_bytes": entry.size_bytes,
        "quantisation": entry.quantisation,
        "source": entry.source,
        "commit": entry.origin.commit if entry.origin else None,
        "files": [file.path for file in entry.files],
        "complete": not entry.missing_files,
    }


def _row(entry: StoreEntry, verbose: bool) -> list[str]:
    source = entry.source + (" (file deleted)" if entry.missing_files else "")
    row = [entry.name, format_bytes(entry.size_bytes), entry.quantisation or "-", source]
    return [*row, str(entry.path)] if verbose else row


def _table(rows: Sequence[Sequence[str]], verbose: bool) -> str:
    header = ["NAME", "SIZE", "TYPE", "SOURCE", *(["PATH"] if verbose else [])]
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )

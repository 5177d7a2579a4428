"""List the models in the store."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from powerserve.storage.builtin import DEFAULT, BuiltinModel, find_builtin
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
        print(f"no models in {store.folder}; `powerserve pull {DEFAULT.name}` fetches a small one")
    return 0


def _as_json(entry: StoreEntry) -> dict[str, object]:
    return {
        "name": entry.name,
        "size_bytes": entry.size_bytes,
        "quantisation": _quantisation(entry),
        "source": _source(entry),
        "commit": entry.origin.commit if entry.origin else None,
        "files": [file.path for file in entry.files],
        "complete": not entry.missing_files,
    }


def _builtin(entry: StoreEntry) -> BuiltinModel | None:
    return find_builtin(entry.name) if entry.origin is None else None


def _source(entry: StoreEntry) -> str:
    return "built-in" if _builtin(entry) else entry.source


def _quantisation(entry: StoreEntry) -> str | None:
    builtin = _builtin(entry)
    return builtin.quantisation if builtin else entry.quantisation


def _row(entry: StoreEntry, verbose: bool) -> list[str]:
    source = _source(entry) + (" (file deleted)" if entry.missing_files else "")
    row = [entry.name, format_bytes(entry.size_bytes), _quantisation(entry) or "-", source]
    return [*row, str(entry.path)] if verbose else row


def _table(rows: Sequence[Sequence[str]], verbose: bool) -> str:
    header = ["NAME", "SIZE", "TYPE", "SOURCE", *(["PATH"] if verbose else [])]
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )

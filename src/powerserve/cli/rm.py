"""Remove a model from the store, with its files if nothing else in the store uses them."""

from __future__ import annotations

import argparse

from powerserve.storage.builtin import find_builtin
from powerserve.storage.progress import format_bytes
from powerserve.storage.store import ModelStore


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("name", metavar="NAME", help="a name that `powerserve list` shows")
    parser.add_argument(
        "--keep-files",
        action="store_true",
        help="forget a download, but leave its files in the Hugging Face cache",
    )


def execute(arguments: argparse.Namespace) -> int:
    """Remove the entry, then the files."""
    store = ModelStore()
    builtin = find_builtin(arguments.name)
    entry = store.remove(builtin.name if builtin else arguments.name)
    freed_bytes = entry.size_bytes
    if entry.origin is not None:
        freed_bytes = 0
        if not arguments.keep_files:
            from powerserve.storage.hub_cache import delete_unused

            freed_bytes = delete_unused(entry, store)
    print(f"removed {entry.name}, {format_bytes(freed_bytes)} freed")
    return 0

"""Download a model into the store.

  powerserve pull Qwen/Qwen2.5-0.5B-Instruct-GGUF            the usual quantisation
  powerserve pull Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q8_0       this quantisation
  powerserve pull owner/repo:folder/file.gguf                this file
  powerserve pull smollm2-135m                               the built-in default model

A download that was interrupted is continued by the same command.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from powerserve.core.errors import UsageError
from powerserve.storage.builtin import ensure_builtin, find_builtin
from powerserve.storage.progress import SILENT, Progress, console_progress
from powerserve.storage.store import ModelStore


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("reference", metavar="MODEL", help="owner/repo[:QUANTISATION|:file.gguf]")
    parser.add_argument("--revision", help="branch, tag or commit (default: main)")
    parser.add_argument("--name", help="what the store shall call it (default: the file's name)")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def execute(arguments: argparse.Namespace) -> int:
    """Fetch the model, then print its name and file."""
    store = ModelStore()
    progress = SILENT if arguments.quiet else console_progress()
    path = _pull(arguments, store, progress)
    name = next((entry.name for entry in store.entries() if entry.path == path), path.stem)
    print(f"{name}: {path}")
    return 0


def _pull(arguments: argparse.Namespace, store: ModelStore, progress: Progress) -> Path:
    if find_builtin(arguments.reference):
        if arguments.revision or arguments.name:
            raise UsageError("a built-in model takes neither --revision nor --name")
        return ensure_builtin(arguments.reference, store, progress=progress)
    from powerserve.storage.hub import pull

    return pull(
        arguments.reference,
        store,
        progress=progress,
        revision=arguments.revision,
        name=arguments.name,
    )

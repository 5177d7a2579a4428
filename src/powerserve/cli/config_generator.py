"""Write the sizes and switches of a GGUF model as flat JSON, as the original's tool does.

Only the file's header is read. `powerserve create -m FILE.gguf` makes a whole model folder.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from powerserve.core.errors import UsageError
from powerserve.storage.copying import file_errors
from powerserve.storage.gguf import GGUFFile
from powerserve.storage.json_file import write_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the original's two flags."""
    parser.add_argument("--file-path", type=Path, required=True, help="the GGUF file to read")
    parser.add_argument("--target-path", type=Path, required=True, help="the JSON file to write")


def execute(arguments: argparse.Namespace) -> int:
    """Read the model's header and write the JSON file."""
    from powerserve.convert.model_description import describe_model

    with GGUFFile.open(arguments.file_path) as file:
        if _are_one(arguments.file_path, arguments.target_path):
            raise UsageError(f"{arguments.target_path} is the model itself: name a JSON file")
        description = flatten(describe_model(file, model_id=""))
    del description["model_id"]  # the exporter gives it, not the file
    with file_errors(f"cannot write {arguments.target_path}"):
        write_json(arguments.target_path, description)
    return 0


def _are_one(model: Path, target: Path) -> bool:
    return target.exists() and os.path.samefile(model, target)


def flatten(nested: Mapping[str, object]) -> dict[str, object]:
    """All keys on one level: those of a section stand where the section stood."""
    flat: dict[str, object] = {}
    for key, value in nested.items():
        flat |= flatten(value) if isinstance(value, Mapping) else {key: value}
    return flat

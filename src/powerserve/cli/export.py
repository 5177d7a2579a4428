"""Make a model folder from a Hugging Face checkpoint, as the original's tools/gguf_export.py does.

The folder (model.json, vocab.gguf, ggml/weights.gguf) can be run, and `powerserve create` takes it.
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path

from powerserve.convert.element_types import AUTO, OUT_TYPES
from powerserve.convert.export import ExportOptions, export
from powerserve.core.errors import UsageError
from powerserve.storage.progress import SILENT, console_progress


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the original's flags."""
    parser.add_argument(
        "-m", "--model-path", type=Path, required=True, metavar="DIR", help="the checkpoint"
    )
    parser.add_argument(
        "-o", "--out-path", type=Path, help="the model folder (default: ./model-<date>/)"
    )
    parser.add_argument(
        "-t", "--out-type", choices=(*OUT_TYPES, AUTO), default="q8_0", help="default: q8_0"
    )
    parser.add_argument(
        "--model-id", default="", help="tells models apart (default: made from the weights)"
    )
    parser.add_argument("--qnn-path", type=Path, metavar="DIR", help="NPU files to put into qnn/")
    parser.add_argument(
        "--only-embed", action="store_true", help="only the embedding table: the NPU has the rest"
    )
    parser.add_argument(
        "--target-arch", nargs="*", metavar="ARCH", help="accepted and ignored: nothing is compiled"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def execute(arguments: argparse.Namespace) -> int:
    """Make the folder and say how to use it."""
    options = ExportOptions(
        out_type=arguments.out_type,
        model_id=arguments.model_id,
        qnn_folder=arguments.qnn_path,
        only_embedding=arguments.only_embed,
    )
    out = arguments.out_path or _default_folder()
    progress = SILENT if arguments.quiet else console_progress()
    folder = export(arguments.model_path, out, options, progress)
    print(f"{folder.path}: a model folder with the id {folder.model_id()}")
    return 0


def _default_folder() -> Path:
    """The original's, unless another model of this day lies there."""
    folder = Path(f"model-{date.today():%Y_%m_%d}")
    if folder.exists():
        raise UsageError(f"{folder} exists already: name a folder with -o")
    return folder

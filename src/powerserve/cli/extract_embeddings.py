"""Write only the token embeddings of a checkpoint, of any architecture, as a GGUF file.

For vision-language models whose other weights live in a compiled NPU graph.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from powerserve.cli.convert import print_written
from powerserve.convert.element_types import OUT_TYPES
from powerserve.convert.embedding_table import extract_embedding
from powerserve.storage.progress import SILENT, console_progress


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the original's tools/extract_embd_from_vl."""
    parser.add_argument(
        "--model-path", type=Path, required=True, metavar="DIR", help="with safetensors files"
    )
    parser.add_argument(
        "--out-path", type=Path, required=True, metavar="FILE", help="the GGUF file to write"
    )
    parser.add_argument("--out-type", choices=OUT_TYPES, default="f32", help="default: f32")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def execute(arguments: argparse.Namespace) -> int:
    """Write the file and print its name."""
    progress = SILENT if arguments.quiet else console_progress()
    extract_embedding(arguments.model_path, arguments.out_path, arguments.out_type, progress)
    print_written(arguments.out_path)
    return 0

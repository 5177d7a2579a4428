"""Find the attention heads and feed-forward neurons that should stay in floating point.

  powerserve qnn stat --model-folder Llama-3.2-1B-Instruct --prompt-file text.txt

Writes attn_<layer>_stat.json and ffn_<layer>_stat.json, lists in descending order of activation,
for `powerserve qnn convert --fp16-heads N --fp16-neurons N`.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from powerserve.cli.qnn_flags import add_model_flags, stat_folder_from, texts_from
from powerserve.storage.progress import SILENT, console_progress

PIECE_TOKENS = 1920  # pieces of the text are as long as the cache of a converted model


def configure(parser: ArgumentParser) -> None:
    """Declare the flags."""
    add_model_flags(parser)
    parser.add_argument("--silent", action="store_true", help="show no progress")


def execute(arguments: Namespace) -> int:
    """Measure, and say what was written."""
    from powerserve.convert.qnn.compiler import require_packages

    require_packages("onnx", "onnxruntime")
    from powerserve.convert.qnn.calibration import Calibration
    from powerserve.convert.qnn.outliers import write_stat_files
    from powerserve.convert.qnn.source import NpuModel

    texts, folder = texts_from(arguments), stat_folder_from(arguments)
    progress = SILENT if arguments.silent else console_progress()
    arguments.build_folder.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    model = NpuModel.open(arguments.model_folder, arguments.build_folder, progress)
    try:
        tokens = texts.encode(model.tokenizer(), PIECE_TOKENS)
        num_layers = model.config.num_layers
        with progress.count("layers", num_layers) as advance:
            for _ in write_stat_files(model, Calibration(tokens.calibration), folder):
                advance(1)
    finally:
        model.close()
    print(f"{folder}: heads and neurons of {num_layers} layers")
    return 0

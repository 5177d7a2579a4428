"""Flags that several commands for the NPU share, and what they mean."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from powerserve.backend.qnn.soc import Soc, find_soc, load_socs
from powerserve.cli import options
from powerserve.core.errors import ConfigError

if TYPE_CHECKING:
    from powerserve.convert.qnn.text import ConversionTexts

DEFAULT_PROMPT = Path("lab_intro_qwen2.md")
_PLACE = Path("assets", "npu")
_PACKAGE = Path(__file__).parents[1]


def add_soc_flags(parser: ArgumentParser, default: str) -> None:
    """`--soc` and `--soc-table`."""
    group = parser.add_argument_group("SoC")
    group.add_argument(
        "--soc",
        default=default,
        metavar="NAME",
        help=f"what to compile for: 8gen3, 8650, SM8650, Qualcomm's number … (default: {default})",
    )
    group.add_argument(
        "--soc-table",
        type=Path,
        metavar="FILE",
        help="SoCs of your own, in the form of powerserve/backend/qnn/socs.toml",
    )


def soc_from(arguments: Namespace) -> Soc:
    """The SoC that the flags name. Raises a PowerServeError."""
    return find_soc(arguments.soc, load_socs(arguments.soc_table))


def add_model_flags(parser: ArgumentParser) -> None:
    """The model and the texts to calibrate with."""
    group = parser.add_argument_group("model and texts")
    group.add_argument(
        "--model-folder",
        type=Path,
        required=True,
        metavar="PATH",
        help="checkpoint, model folder or GGUF file",
    )
    group.add_argument(
        "--system-prompt-file",
        type=Path,
        metavar="FILE",
        help="what texts begin with; its keys and values are computed now (default: none)",
    )
    group.add_argument(
        "--prompt-file",
        type=Path,
        default=DEFAULT_PROMPT,
        metavar="FILE",
        help=f"text in the model's chat template to calibrate with (default: {DEFAULT_PROMPT}, "
        "which is ours)",
    )
    group.add_argument(
        "--max-n-tokens",
        type=options.positive_number,
        default=1280,
        metavar="N",
        help="tokens of it that calibration sees; the rest measures perplexity (default: 1280)",
    )
    group.add_argument(
        "--stat-folder",
        type=Path,
        metavar="DIR",
        help="stat files of heads and neurons (default: stat/ in the model folder)",
    )
    group.add_argument(
        "--build-folder",
        type=Path,
        default=Path("build"),
        metavar="DIR",
        help="for what is made on the way (default: ./build)",
    )


def texts_from(arguments: Namespace) -> ConversionTexts:
    """The texts that the flags name. Raises ConfigError."""
    from powerserve.convert.qnn.text import ConversionTexts

    system: Path | None = arguments.system_prompt_file
    return ConversionTexts(
        system_prompt="" if system is None else _read_text(system),
        calibration=_read_text(arguments.prompt_file),
        max_tokens=arguments.max_n_tokens,
    )


def stat_folder_from(arguments: Namespace) -> Path:
    """Where the stat files are."""
    source: Path = arguments.model_folder
    chosen: Path | None = arguments.stat_folder
    return chosen or (source if source.is_dir() else source.parent) / "stat"


def _read_text(path: Path) -> str:
    """The text of a file: the user's, or the one of that name that comes with PowerServe."""
    roots = (_PACKAGE, _PACKAGE.parents[1])  # an installed wheel, a checkout
    candidates = [path, *(root / _PLACE / path.name for root in roots)]
    found = next((each for each in candidates if each.is_file()), path)
    try:
        return found.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None

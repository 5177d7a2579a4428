"""Flags that several commands share, and what they mean for loading and sampling."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from powerserve.core import dtypes
from powerserve.core.errors import UsageError

if TYPE_CHECKING:
    from powerserve.backend.qnn.options import NpuOptions
    from powerserve.engine.loader import LoadOptions
    from powerserve.sampler.params import SamplingParams
    from powerserve.storage.hparams import Hparams
    from powerserve.storage.resolve import ModelSource

KV_TYPES = {"f16": dtypes.F16, "q8_0": dtypes.Q8_0, "f32": dtypes.F32}
DEFAULT_BATCH_SIZE = 512
RANDOM_SEED = -1

# flag -> field of SamplingParams; None means that the flag was not given
_SAMPLING_FIELDS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical": "typical_p",
    "repeat_penalty": "repeat_penalty",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "repeat_last_n": "penalty_last_n",
    "seed": "seed",
    "logprobs": "logprobs",
}


def add_model_flags(parser: ArgumentParser) -> None:
    """Which model: `-m`, `--work-folder` and what the original has beside them."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m",
        "--model",
        default="",
        metavar="MODEL",
        help="GGUF file, model folder, workspace, or a name from the store or the work folder",
    )
    group.add_argument("-d", "--work-folder", type=Path, metavar="DIR", help="workspace folder")
    group.add_argument(
        "--workspace-config",
        type=Path,
        metavar="FILE",
        help="use this instead of the work folder's workspace.json",
    )
    add_npu_flags(parser)


def add_npu_flags(parser: ArgumentParser) -> None:
    """Whether a model with NPU files runs on the NPU; by default, where there is one."""
    group = parser.add_argument_group("NPU")
    group.add_argument(
        "--lib-folder",
        type=Path,
        metavar="DIR",
        help="folder of Qualcomm's libraries (default: the work folder's qnn_libs, then "
        "QNN_SDK_ROOT, then the package onnxruntime-qnn)",
    )
    mode = group.add_mutually_exclusive_group()
    for flag, value, text in (
        ("--qnn", "required", "fail where the model cannot run on the NPU"),
        ("--no-qnn", "off", "use the CPU"),
        ("--qnn-emulator", "emulator", "use Qualcomm's emulator of the NPU: exact and very slow"),
        ("--qnn-cpu", "cpu", "run the NPU's quantised graphs (qnn/cpu) on the CPU, to compare"),
    ):
        mode.add_argument(
            flag, action="store_const", const=value, default="auto", dest="npu", help=text
        )
    group.add_argument(
        "--qnn-system-kv",
        choices=["auto", "use", "ignore"],
        default="auto",
        help="the system prompt that was computed when the model was converted: for prompts that "
        "begin with it (auto), before every prompt as in the original (use), or not at all",
    )


def add_engine_flags(parser: ArgumentParser) -> None:
    """How the model runs."""
    group = parser.add_argument_group("engine")
    group.add_argument(
        "-t",
        "--thread",
        "--threads",
        type=whole_number,
        default=0,
        metavar="N",
        dest="threads",
        help="CPU threads (default: as many cores as this process may use)",
    )
    group.add_argument(
        "-b",
        "--batch-size",
        "--batch_size",
        type=whole_number,
        default=0,
        metavar="N",
        dest="batch_size",
        help=f"prompt tokens computed at once (default: {DEFAULT_BATCH_SIZE})",
    )
    group.add_argument(
        "-c",
        "--ctx-size",
        type=positive_number,
        metavar="N",
        help="context in tokens (default: what the model was trained for, at most 8192)",
    )
    group.add_argument(
        "--kv-type", choices=list(KV_TYPES), default="f16", help="type of the KV cache"
    )
    group.add_argument(
        "--mmap",
        action="store_true",
        help="use weights from the file's pages where possible: less memory, a little slower",
    )
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="same seed, same text: nothing shared between requests",
    )
    group.add_argument(
        "--backend",
        choices=["ggml", "reference"],
        default="ggml",
        help="reference: numpy, slow, for comparison",
    )
    group.add_argument(
        "--kernels",
        choices=["auto", "ggml", "native"],
        default="auto",
        help="whose matrix products: auto: those of `powerserve build-native` where measured to be "
        "faster than ggml's",
    )
    group.add_argument(
        "--poll",
        type=whole_number,
        metavar="0-100",
        help="how long idle threads spin before they sleep (default: 50)",
    )


def add_sampling_flags(parser: ArgumentParser) -> None:
    """How tokens are chosen; a flag that is not given leaves it to hparams.json or the defaults."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--temp",
        "--temperature",
        type=float,
        dest="temperature",
        metavar="T",
        help="0: always the most likely token (default: 0.8)",
    )
    group.add_argument("--top-k", type=int, metavar="K", help="keep the K best (default: 40)")
    group.add_argument("--top-p", type=float, metavar="P", help="keep the mass P (default: 0.95)")
    group.add_argument("--min-p", type=float, metavar="P", help="keep from P of the best on")
    group.add_argument("--typical", type=float, metavar="P", help="locally typical sampling")
    group.add_argument("--repeat-penalty", type=float, metavar="X", help="1: off")
    group.add_argument("--frequency-penalty", type=float, metavar="X", help="0: off")
    group.add_argument("--presence-penalty", type=float, metavar="X", help="0: off")
    group.add_argument(
        "--repeat-last-n",
        type=int,
        metavar="N",
        help="tokens that penalties look at; -1: all (default: 64)",
    )
    group.add_argument(
        "-s", "--seed", type=int, metavar="N", help="for repeatable randomness (-1: random)"
    )
    group.add_argument("--ignore-eos", action="store_true", help="do not stop at the end token")
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="stop before this text (repeatable)",
    )
    group.add_argument(
        "--logit-bias",
        action="append",
        default=[],
        metavar="TOKEN=BIAS",
        type=_bias,
        help="add to a token's logit (repeatable)",
    )
    group.add_argument("--logprobs", type=int, metavar="N", help="report N alternatives (--json)")


def find_model(arguments: Namespace, default: str) -> ModelSource:
    """The model that the flags name; without any, `default`.

    The original silently ignores a `-m` that does not exist; here it is an error.
    """
    from powerserve.llm import locate_model
    from powerserve.storage.progress import console_progress
    from powerserve.storage.resolve import resolve_workspace
    from powerserve.storage.workspace import Workspace

    if arguments.work_folder is None:
        if arguments.workspace_config is not None:
            raise UsageError("--workspace-config needs --work-folder")
        return locate_model(arguments.model or default, progress=console_progress())
    if arguments.workspace_config is not None and not arguments.model:
        return resolve_workspace(Workspace.open(arguments.work_folder, arguments.workspace_config))
    return locate_model(
        arguments.model, work_folder=arguments.work_folder, progress=console_progress()
    )


def load_options(arguments: Namespace, hparams: Hparams | None) -> LoadOptions:
    """Loading options from the flags, then hparams.json, then the defaults."""
    from powerserve.cli.speculation_flags import speculation_options
    from powerserve.engine.loader import LoadOptions

    threads = arguments.threads or (hparams.usable_threads if hparams else 0)
    batch = arguments.batch_size or (hparams.batch_size if hparams else DEFAULT_BATCH_SIZE)
    return LoadOptions(
        context_size=arguments.ctx_size,
        num_threads=threads,
        batch_size=batch,
        kv_dtype=KV_TYPES[arguments.kv_type],
        use_mmap=arguments.mmap,
        deterministic=arguments.deterministic,
        speculation=speculation_options(arguments),
        backend=arguments.backend,
        poll=arguments.poll,
        kernels=arguments.kernels,
        npu=npu_options(arguments),
    )


def npu_options(arguments: Namespace) -> NpuOptions:
    """What the flags say about the NPU."""
    from powerserve.backend.qnn.options import NpuMode, NpuOptions, SystemPromptUse
    from powerserve.storage.workspace import QNN_LIBS_FOLDER

    libraries: Path | None = arguments.lib_folder
    if libraries is None and arguments.work_folder is not None:
        own = arguments.work_folder / QNN_LIBS_FOLDER
        libraries = own if own.is_dir() else None
    return NpuOptions(NpuMode(arguments.npu), libraries, SystemPromptUse(arguments.qnn_system_kv))


def sampling_params(
    arguments: Namespace, hparams: Hparams | None, max_tokens: int | None
) -> SamplingParams:
    """Sampling parameters from the flags, then hparams.json, then the defaults."""
    from powerserve.sampler.params import SamplingParams

    base = SamplingParams.from_hparams(hparams.sampler) if hparams else SamplingParams()
    changes: dict[str, Any] = {
        field: value
        for flag, field in _SAMPLING_FIELDS.items()
        if (value := getattr(arguments, flag)) is not None
    }
    if arguments.seed == RANDOM_SEED:
        changes["seed"] = None
    biases: Mapping[int, float] = dict(arguments.logit_bias)
    return base.replace(
        **changes,
        max_tokens=max_tokens,
        stop=tuple(arguments.stop),
        logit_bias=biases,
        ignore_eos=arguments.ignore_eos or base.ignore_eos,
    )


def whole_number(text: str) -> int:
    """argparse type: an integer >= 0."""
    return _number(text, low=0)


def positive_number(text: str) -> int:
    """argparse type: an integer >= 1."""
    return _number(text, low=1)


def positive_amount(unit: str) -> Callable[[str], float]:
    """An argparse type: a positive, finite number of something, whose name is for the message."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of {unit}")
        return value

    return parse


seconds = positive_amount("seconds")


def _number(text: str, low: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if value < low:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {low}")
    return value


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not TOKEN=BIAS, as in 42=-1.5") from None

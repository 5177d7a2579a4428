"""What the actions of `powerserve deploy` share: flags, and how a model gets to the device."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from powerserve.core.errors import UsageError

if TYPE_CHECKING:
    from powerserve.deploy.deployment import Deployed
    from powerserve.deploy.device import Device
    from powerserve.storage.progress import Progress

SDK_VARIABLE = "QNN_SDK_ROOT"


def add_device_flag(parser: ArgumentParser, *letters: str) -> None:
    """Which device."""
    parser.add_argument(
        *letters,
        "--device",
        metavar="SERIAL",
        help="as `adb devices` or `hdc list targets` lists it (default: the only one)",
    )


def add_model_flags(parser: ArgumentParser) -> None:
    """Which model, how it runs, and what is sent with it."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a name of the model table (such as llama-3.2-1b), a GGUF file, a model folder, a "
        "workspace or a name from the store",
    )
    parser.add_argument("--draft-model", default="", metavar="MODEL", help="what guesses, for -s")
    parser.add_argument("-c", "--no-qnn", action="store_true", help="use the CPU, not the NPU")
    parser.add_argument(
        "--bundle", type=Path, metavar="FILE", help="send this one (default: build it if need be)"
    )
    parser.add_argument(
        "--ndk", type=Path, metavar="DIR", help="an unpacked Android NDK: the NPU's helper needs it"
    )
    parser.add_argument(
        "--sign",
        metavar="COMMAND",
        help="run `COMMAND BUNDLE OUTPUT`, and send OUTPUT (for HarmonyOS)",
    )


def add_further_flags(parser: ArgumentParser, command: str) -> None:
    """Flags that are handed on."""
    parser.add_argument(
        "--flags",
        type=_words,
        default=[],
        metavar="TEXT",
        help=f"flags for `powerserve {command}` on the device, as in --flags='--temp 0 --seed 1'",
    )


def deploy_model(arguments: Namespace, progress: Progress) -> Deployed:
    """Bring program and model to the device that the flags mean. Raises a PowerServeError."""
    from powerserve.deploy.deployment import Order, deploy
    from powerserve.deploy.model_choice import Wish
    from powerserve.deploy.selection import choose_device

    device = choose_device(arguments.device)
    wish = Wish(arguments.model, arguments.draft_model, arguments.use_spec)
    with _bundle(arguments, device, progress) as bundle:
        use_npu = not arguments.no_qnn
        order = Order(wish, bundle, use_npu, os.environ.get(SDK_VARIABLE))
        return deploy(device, order, progress)


@contextmanager
def _bundle(arguments: Namespace, device: Device, progress: Progress) -> Iterator[Path]:
    bundle = arguments.bundle or _built(arguments.ndk, device, progress)
    if not bundle.is_file():
        raise UsageError(f"--bundle: there is no file {bundle}")
    if not arguments.sign:
        yield bundle
        return
    with tempfile.TemporaryDirectory() as folder:
        yield _signed(arguments.sign, bundle, Path(folder) / bundle.name)


def _built(ndk: Path | None, device: Device, progress: Progress) -> Path:
    from powerserve.deploy.bundle.build import BundleOptions, build_bundle
    from powerserve.deploy.bundle.target import find_target

    return build_bundle(find_target(device.bundle_target), BundleOptions(ndk=ndk), progress)


def _signed(command: str, bundle: Path, output: Path) -> Path:
    try:
        done = subprocess.run([*shlex.split(command), str(bundle), str(output)])
    except (OSError, ValueError) as error:
        raise UsageError(f"--sign: `{command}` cannot be run: {error}") from None
    if done.returncode != 0 or not output.is_file():
        raise UsageError(
            f"--sign: `{command}` ended with status {done.returncode} "
            f"{'and' if output.is_file() else 'without'} a signed bundle"
        )
    return output


def _words(text: str) -> list[str]:
    """argparse type: words as a shell splits them."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} has an unclosed quote") from error

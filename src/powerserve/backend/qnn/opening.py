"""From a model folder to a backend: which of its NPU files, and what executes them."""

from __future__ import annotations

import logging
import platform
import sys
from pathlib import Path

from powerserve.backend.ggml.backend import GgmlBackend
from powerserve.backend.qnn.backend import QnnBackend
from powerserve.backend.qnn.config_file import CPU_FOLDER, EMULATOR_FOLDER, FILE_NAME, QnnFolder
from powerserve.backend.qnn.libraries import find_libraries
from powerserve.backend.qnn.options import NpuMode, NpuOptions
from powerserve.backend.qnn.runtime.base import Runtime
from powerserve.core.errors import BackendError, ConfigError

logger = logging.getLogger("powerserve.backend")

_ARM = ("aarch64", "arm64", "ARM64")
_X86 = ("x86_64", "AMD64")


def open_backend(npu_files: Path, options: NpuOptions, host: GgmlBackend) -> QnnBackend:
    """A backend for the model whose `qnn` folder is `npu_files`.

    Raises:
        BackendError: nothing here can execute the files.
        ConfigError: the folder, or the part of it that is wanted, is missing or wrong.
    """
    if options.mode in (NpuMode.AUTO, NpuMode.REQUIRED):
        check_npu()
    place = folder_for(npu_files, options.mode)
    if options.mode is NpuMode.CPU and not (place / FILE_NAME).is_file():
        raise ConfigError(
            f"{npu_files} has no quantised graphs for the CPU; `powerserve qnn convert --cpu` "
            "delivers them"
        )
    folder = QnnFolder.read(place)
    return QnnBackend(folder, open_runtime(options, host.num_threads), host, options.system_prompt)


def folder_for(npu_files: Path, mode: NpuMode) -> Path:
    """The part of a `qnn` folder that is for this mode."""
    if mode is NpuMode.CPU:
        return npu_files / CPU_FOLDER
    emulator = npu_files / EMULATOR_FOLDER
    has_own = mode is NpuMode.EMULATOR and (emulator / FILE_NAME).is_file()
    return emulator if has_own else npu_files


def check_npu() -> None:
    """Raises BackendError if there is no use in looking for an NPU here."""
    if sys.platform == "darwin" or platform.machine() not in _ARM:
        raise BackendError(
            f"this machine ({platform.system()}, {platform.machine()}) has no Snapdragon NPU"
        )


def open_runtime(options: NpuOptions, num_threads: int) -> Runtime:
    """What executes graphs in this mode; raises BackendError."""
    if options.mode is NpuMode.CPU:
        from powerserve.backend.qnn.runtime.cpu import CpuRuntime

        return CpuRuntime(num_threads)
    emulated = options.mode is NpuMode.EMULATOR
    if emulated and platform.machine() not in _X86:
        raise BackendError(f"Qualcomm's emulator runs on x86-64, not on {platform.machine()}")
    name = "NPU emulator" if emulated else "NPU"
    helper = _helper()
    if helper is None:
        from powerserve.backend.qnn.runtime.process import ProcessRuntime

        return ProcessRuntime(name, options.libraries)
    from powerserve.backend.qnn.runtime.helper import HelperRuntime

    return HelperRuntime(helper, find_libraries(options.libraries))


def _helper() -> Path | None:
    """The native helper; without it or a compiler, ONNX Runtime does its work."""
    from powerserve.backend.qnn.runtime.build import helper_executable

    try:
        return helper_executable()
    except BackendError as error:
        logger.info("no NPU helper, so ONNX Runtime executes the graphs: %s", error)
        return None

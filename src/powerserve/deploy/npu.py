"""Whether the NPU of a device can be used, and what it needs there.

It takes a SoC for which models are compiled, Qualcomm's libraries out of the user's own SDK, and a
bundle with the NPU helper, which an NDK compiles: the libraries want Android's own C library, which
the Python of a bundle does not use.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePath

from powerserve.backend.qnn.runtime.build import EXECUTABLE
from powerserve.backend.qnn.soc import Soc, load_socs, soc_of_phone
from powerserve.core.errors import UsageError
from powerserve.deploy.device import Device
from powerserve.deploy.layout import QNN_LIBS
from powerserve.storage.copying import FileCopy, file_errors
from powerserve.storage.qnn_libs import PATTERNS

# Termux finds the wrong libbinder.so without the system's folders; the DSP's loader has a variable
# of its own, in which it separates folders by semicolons.
ENVIRONMENT = {
    "LD_LIBRARY_PATH": f"{QNN_LIBS}:/system/lib64:/vendor/lib64",
    "ADSP_LIBRARY_PATH": f"{QNN_LIBS};/vendor/dsp/cdsp;/vendor/lib/rfsa/adsp",
}


@dataclass(frozen=True, slots=True)
class Npu:
    """What the NPU of a device can be used with. `obstacle` says why it cannot, "" if it can."""

    soc: str | None = None  # as the repositories of models call it
    libraries: tuple[FileCopy, ...] = ()
    obstacle: str = ""


def detect_soc(device: Device) -> Soc | None:
    """The device's SoC, if it is one of Qualcomm's that we know. Raises DeviceError."""
    part, platform = device.property("ro.soc.model"), device.property("ro.board.platform")
    return soc_of_phone(part, platform, load_socs())


def find_npu(soc: str | None, sdk: str | None, bundle: Path) -> Npu:
    """What there is for the NPU of `soc`, with Qualcomm's SDK in the folder `sdk`.

    Raises UsageError for files that cannot be read.
    """
    if soc is None:
        return Npu(obstacle="no models are compiled for this device's SoC")
    if not sdk:
        return Npu(obstacle="QNN_SDK_ROOT is not set, so Qualcomm's libraries are missing")
    libraries = _libraries(Path(sdk))
    if not libraries:
        return Npu(obstacle=f"there are no QNN libraries in {sdk} (QNN_SDK_ROOT)")
    if not _has_helper(bundle):
        return Npu(obstacle="the bundle has no NPU helper, which --ndk DIR adds")
    return Npu(soc, libraries)


def _libraries(sdk: Path) -> tuple[FileCopy, ...]:
    with file_errors(f"the QNN libraries in {sdk} cannot be read"):
        paths = [path for pattern in PATTERNS for path in sorted(sdk.glob(pattern))]
        return tuple(FileCopy(path, PurePath(path.name), path.stat().st_size) for path in paths)


def _has_helper(bundle: Path) -> bool:
    try:
        with tarfile.open(bundle) as archive:
            return any(PurePath(name).name == EXECUTABLE for name in archive.getnames())
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UsageError(f"the bundle {bundle} cannot be read: {error}") from None

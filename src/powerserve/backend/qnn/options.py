"""What a user may choose about the NPU."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class NpuMode(StrEnum):
    """Where a model with NPU files runs."""

    AUTO = "auto"  # on the NPU if there is one that loads it, else on the CPU
    REQUIRED = "required"
    OFF = "off"
    EMULATOR = "emulator"  # Qualcomm's emulator of the NPU: exact, and very slow
    CPU = "cpu"  # the quantised graphs on the CPU: what the NPU is compared with


class SystemPromptUse(StrEnum):
    """What to do with the system prompt whose K and V come with a model's NPU files."""

    AUTO = "auto"  # if its tokens are known, prompts that begin with them need not compute them
    USE = "use"  # put it before every sequence, as the original PowerServe does
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class NpuOptions:
    """How the NPU is used; `libraries` is the folder of Qualcomm's (None: see `libraries.py`)."""

    mode: NpuMode = NpuMode.AUTO
    libraries: Path | None = None
    system_prompt: SystemPromptUse = SystemPromptUse.AUTO

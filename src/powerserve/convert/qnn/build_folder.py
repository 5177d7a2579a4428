"""Where everything lies while a model is converted, and how it is found again."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from powerserve.convert.qnn.plan import Part
from powerserve.convert.qnn.source import CONVERTED_NAME

BINARIES = "binaries"
GRAPHS = "graphs"
LAYERS = "layers"
SYSTEM_PROMPT = "system_prompt"
REPORT = "report.json"
LOCK = "convert.lock"


@dataclass(frozen=True, slots=True)
class BuildFolder:
    """The places inside a build folder."""

    path: Path

    @property
    def layers(self) -> Path:
        """The quantised layers."""
        return self.path / LAYERS

    @property
    def graphs(self) -> Path:
        """The quantised graphs of all parts."""
        return self.path / GRAPHS

    @property
    def system_prompt(self) -> Path:
        """K and V of the system prompt, as they go into the output folder."""
        return self.path / SYSTEM_PROMPT

    def onnx_file(self, part: Part, batch_size: int) -> Path:
        """A quantised graph; its weights lie beside it."""
        return self.graphs / part.folder / f"batch_{batch_size}.onnx"

    def device_binary(self, part: Part, soc: str) -> Path:
        """All batch sizes in one binary, which share weights."""
        return self.path / BINARIES / soc / f"{part.stem}.bin"

    def emulator_binary(self, part: Part, batch_size: int, soc: str) -> Path:
        """One batch size: what the emulator can load."""
        return self.path / BINARIES / soc / "emulator" / f"{part.stem}_batch_{batch_size}.bin"

    def clear(self) -> None:
        """Remove what a conversion puts here, and the folder itself if nothing else is in it."""
        for name in (LAYERS, GRAPHS, BINARIES, SYSTEM_PROMPT):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in (CONVERTED_NAME, REPORT, LOCK):
            (self.path / name).unlink(missing_ok=True)
        if not any(self.path.iterdir()):
            self.path.rmdir()

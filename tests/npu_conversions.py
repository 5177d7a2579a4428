"""Small conversions for the NPU, from tiny models, with Qualcomm's real compiler and emulator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from powerserve.backend.qnn.soc import find_soc, load_socs
from powerserve.convert.qnn.compiler import CompileOptions
from powerserve.convert.qnn.pipeline import convert_for_npu
from powerserve.convert.qnn.plan import GraphSizes
from powerserve.convert.qnn.report import ConversionReport
from powerserve.convert.qnn.request import NpuConversion
from powerserve.convert.qnn.text import ConversionTexts
from tiny_models import TinyModel, write_tiny_model

SYSTEM_PROMPT = "<|im_start|>system\nhello world<|im_end|>\n"
TEXT = "the world is on a ring and he sings in the hall of words; " * 8
SIZES = GraphSizes((1, 8), 64, 80)


@dataclass(frozen=True)
class Converted:
    """A finished conversion."""

    conversion: NpuConversion
    report: ConversionReport

    @property
    def folder(self) -> Path:
        """The model's `qnn/` folder."""
        return self.conversion.output


def tiny_npu_model(folder: Path, architecture: str) -> Path:
    """A GGUF file of two layers with heads of 32 dimensions."""
    model = TinyModel(
        architecture, embed_dim=64, ffn_dim=128, num_heads=4, num_kv_heads=2, head_dim=32
    )
    return write_tiny_model(folder / f"{architecture}.gguf", model)


def tiny_conversion(folder: Path, architecture: str = "llama", soc: str = "8650") -> NpuConversion:
    """What converts such a model below `folder`, into every kind of output."""
    return NpuConversion(
        source=tiny_npu_model(folder, architecture),
        name="tiny",
        texts=ConversionTexts(SYSTEM_PROMPT, TEXT, max_tokens=160),
        build=folder / "build",
        output=folder / "qnn",
        compiling=CompileOptions(find_soc(soc, load_socs()), timeout_s=300),
        sizes=SIZES,
        num_chunks=2,
        with_emulator=True,
        with_cpu=True,
    )


def convert_tiny(folder: Path, architecture: str, soc: str) -> Converted:
    """Convert such a model."""
    conversion = tiny_conversion(folder, architecture, soc)
    return Converted(conversion, convert_for_npu(conversion))

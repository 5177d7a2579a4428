"""What is to be converted for the NPU, into what, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from powerserve.convert.qnn.compiler import CompileOptions
from powerserve.convert.qnn.float_parts import FloatParts
from powerserve.convert.qnn.gate import GateLimits
from powerserve.convert.qnn.lowering import BATCH_16_GAIN, LoweringOptions
from powerserve.convert.qnn.memory import MemoryEstimate
from powerserve.convert.qnn.outliers import OutlierCounts, float_parts
from powerserve.convert.qnn.plan import GraphSizes
from powerserve.convert.qnn.quantise import QuantisationOptions
from powerserve.convert.qnn.text import ConversionTexts
from powerserve.core.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Outliers:
    """What stays in floating point: whole layers, and by the stat files in `folder` parts."""

    folder: Path = Path("stat")
    counts: OutlierCounts = field(default_factory=OutlierCounts)
    attention_layers: frozenset[int] = frozenset()
    ffn_layers: frozenset[int] = frozenset()

    def float_parts(self, config: ModelConfig) -> FloatParts:
        """Those parts of a model. Raises ConfigError or UsageError."""
        return float_parts(self.folder, config, self.counts, self.attention_layers, self.ffn_layers)


@dataclass(frozen=True, slots=True)
class NpuConversion:
    """What to convert, into what.

    Attributes:
        source: a GGUF file, a model folder or a checkpoint folder of Hugging Face.
        name: begins the binaries' names.
        texts: the system prompt, and what is calibrated with.
        build: folder for what lies between source and output.
        output: the `qnn/` folder to fill.
        num_chunks: parts that the layers are cut into.
        with_lm_head: whether the NPU computes the output layer too.
        outliers: what stays in floating point.
        num_processes: compilations at a time.
        with_emulator, with_cpu: whether the folders for those are delivered too.
        compare: whether compiled graphs are compared with the CPU.
        force: deliver even what the comparison does not accept.
    """

    source: Path
    name: str
    texts: ConversionTexts
    build: Path
    output: Path
    compiling: CompileOptions
    sizes: GraphSizes = field(default_factory=GraphSizes)
    num_chunks: int = 1
    with_lm_head: bool = True
    quantisation: QuantisationOptions = field(default_factory=QuantisationOptions)
    outliers: Outliers = field(default_factory=Outliers)
    num_processes: int = 2
    with_emulator: bool = False
    with_cpu: bool = False
    compare: bool = True
    force: bool = False
    limits: GateLimits = field(default_factory=GateLimits)

    @property
    def needs_emulator(self) -> bool:
        """Whether anything is compiled for the emulator."""
        return self.compare or self.with_emulator

    def memory(self, config: ModelConfig) -> MemoryEstimate:
        """What compilations take."""
        quantisation = self.quantisation
        has_wide = quantisation.wide_matrices and quantisation.weight_bits < 8
        return MemoryEstimate(
            config,
            8 if has_wide else quantisation.weight_bits,
            quantisation.lm_head_bits,
            len(self.sizes.batch_sizes),
        )

    def lowering(self, config: ModelConfig) -> LoweringOptions:
        """How the model's graph is to be written. Raises ConfigError or UsageError."""
        gain = BATCH_16_GAIN if 16 in self.sizes.batch_sizes else 1.0
        return LoweringOptions(attention_gain=gain, float_parts=self.outliers.float_parts(config))

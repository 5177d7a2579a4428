"""From a checkpoint to the NPU's files: quantise, measure, compile, compare, deliver.

What is finished lies in the build folder and is not done again when the same conversion is started
anew. Nothing is delivered unless every compiled graph computes what it should.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from powerserve.backend.qnn.inspect import check_graph, inspect_binary
from powerserve.backend.qnn.libraries import find_libraries
from powerserve.backend.qnn.runtime.base import GraphRequest, Runtime
from powerserve.backend.qnn.runtime.process import ProcessRuntime
from powerserve.convert.qnn.build_folder import REPORT, BuildFolder
from powerserve.convert.qnn.calibration import Calibration
from powerserve.convert.qnn.compile_plan import CompiledPart, compile_plan
from powerserve.convert.qnn.compiler import CompileOptions, check_compiler
from powerserve.convert.qnn.delivery import Delivery
from powerserve.convert.qnn.evaluation import measure_perplexity
from powerserve.convert.qnn.float_parts import FloatParts
from powerserve.convert.qnn.gate import GateLimits, GraphErrors, failures
from powerserve.convert.qnn.gate_run import GateRun
from powerserve.convert.qnn.lowering import BATCH_16_GAIN, LoweringOptions
from powerserve.convert.qnn.memory import check_memory
from powerserve.convert.qnn.outliers import OutlierCounts, float_parts
from powerserve.convert.qnn.plan import GraphSizes, Part, Plan, make_plan
from powerserve.convert.qnn.quantise import QuantisationOptions
from powerserve.convert.qnn.quantised_files import open_chunk, write_quantised
from powerserve.convert.qnn.report import ConversionReport, part_reports
from powerserve.convert.qnn.source import NpuModel
from powerserve.convert.qnn.system_prompt import write_system_prompt
from powerserve.convert.qnn.text import ConversionTexts
from powerserve.core.config import ModelConfig
from powerserve.core.errors import BackendError
from powerserve.storage.progress import SILENT, Progress


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

    def run(self, progress: Progress = SILENT) -> ConversionReport:
        """Convert; the report is in the build folder whatever comes of it.

        Raises:
            BackendError: the compiler is missing or fails, or the result is not accepted.
            PowerServeError: the model or a text cannot be used, or memory does not suffice.
        """
        check_compiler()
        self.build.mkdir(parents=True, exist_ok=True)
        model = NpuModel.open(self.source, self.build, progress)
        try:
            return self._convert(model, progress)
        finally:
            model.close()

    def clear(self) -> None:
        """Remove what `run` has put into the build folder, and that folder if nothing is left."""
        BuildFolder(self.build).clear()

    def _convert(self, model: NpuModel, progress: Progress) -> ConversionReport:
        check_memory(model.config, self.num_chunks)
        plan = make_plan(
            model.config, self.name, self.num_chunks, self.sizes, with_lm_head=self.with_lm_head
        )
        build = BuildFolder(self.build)
        tokens = self.texts.encode(model.tokenizer(), self.sizes.cache_size)
        calibration = Calibration(
            tokens.calibration, self.quantisation, self._lowering(model.config)
        )
        quantised = write_quantised(model, self.source, plan, calibration, build, progress)
        if tokens.system:
            chunks = (open_chunk(model, plan, build, part) for part in plan.chunks)
            write_system_prompt(model, chunks, tokens.system, build.system_prompt)
        perplexity = measure_perplexity(model, plan, build, tokens)
        compiled = self._compile(plan, build, progress)
        graphs = self._compare(model, plan, compiled, tokens.calibration[0], progress)
        report = ConversionReport(
            model=self.name,
            soc=self.compiling.soc.part,
            sizes=self.sizes,
            num_system_tokens=len(tokens.system),
            parts=part_reports(compiled),
            layer_errors=quantised.layer_errors,
            perplexity=perplexity,
            limits=self.limits,
            graphs=graphs,
            failures=tuple(failures(graphs, self.limits)),
        )
        report.write(self.build)
        if report.failures and not self.force:
            raise BackendError(_refusal(report, self.build))
        delivery = Delivery(plan, build, self.compiling.soc, compiled, tokens.system)
        delivery.write(
            self.output, progress, with_emulator=self.with_emulator, with_cpu=self.with_cpu
        )
        report.write(self.output)
        return report

    def _lowering(self, config: ModelConfig) -> LoweringOptions:
        gain = BATCH_16_GAIN if 16 in self.sizes.batch_sizes else 1.0
        return LoweringOptions(attention_gain=gain, float_parts=self.outliers.float_parts(config))

    def _compile(
        self, plan: Plan, build: BuildFolder, progress: Progress
    ) -> dict[Part, CompiledPart]:
        compiled = compile_plan(
            plan,
            build,
            self.compiling,
            self.num_processes,
            progress,
            for_emulator=self.compare or self.with_emulator,
        )
        for part, binaries in compiled.items():
            self._check_tensors(
                plan, build.device_binary(part, self.compiling.soc.part), part, binaries
            )
        return compiled

    def _check_tensors(self, plan: Plan, binary: Path, part: Part, compiled: CompiledPart) -> None:
        """Read the device's binary back: graph names, tensors, types and shapes."""
        found = inspect_binary(binary, find_libraries())
        for batch_size in plan.sizes.batch_sizes:
            name = compiled.graph_name(plan, batch_size)
            check_graph(binary, found, GraphRequest(name, plan.spec(part, batch_size)))

    def _compare(
        self,
        model: NpuModel,
        plan: Plan,
        compiled: dict[Part, CompiledPart],
        token_ids: Sequence[int],
        progress: Progress,
    ) -> tuple[GraphErrors, ...]:
        if not self.compare:
            return ()
        run = GateRun(model, plan, BuildFolder(self.build), self.compiling.soc.part, _emulator)
        total = len(plan.parts) * len(plan.sizes.batch_sizes)
        graphs = []
        with progress.count("comparing", total) as advance:
            for errors in run.errors(compiled, token_ids):
                graphs.append(errors)
                advance(1)
        return tuple(graphs)


def _emulator() -> Runtime:
    return ProcessRuntime("Qualcomm's emulator")


def _refusal(report: ConversionReport, build: Path) -> str:
    reasons = "; ".join(report.failures)
    return (
        f"the compiler has made graphs that compute something else: {reasons}; nothing was "
        f"delivered ({build / REPORT} has the details; other --batch-sizes may do, and --force "
        "delivers all the same)"
    )

"""From a checkpoint to the NPU's files: quantise, measure, compile, compare, deliver.

What is finished lies in the build folder and is not done again when the same conversion is started
anew. Nothing is delivered unless every compiled graph computes what it should.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from powerserve.backend.qnn.inspect import check_graph, inspect_binary
from powerserve.backend.qnn.libraries import find_libraries
from powerserve.backend.qnn.runtime.base import GraphRequest, Runtime
from powerserve.backend.qnn.runtime.process import ProcessRuntime
from powerserve.convert.qnn.build_folder import LOCK, REPORT, BuildFolder
from powerserve.convert.qnn.calibration import Calibration
from powerserve.convert.qnn.compile_plan import CompiledPart, compile_plan
from powerserve.convert.qnn.compiler import check_compiler
from powerserve.convert.qnn.delivery import Delivery
from powerserve.convert.qnn.evaluation import measure_perplexity
from powerserve.convert.qnn.gate import GraphErrors, failures
from powerserve.convert.qnn.gate_run import GateRun
from powerserve.convert.qnn.plan import Part, Plan, make_plan
from powerserve.convert.qnn.quantised_files import QuantisedRecord, write_quantised
from powerserve.convert.qnn.report import ConversionReport, part_reports
from powerserve.convert.qnn.request import NpuConversion
from powerserve.convert.qnn.source import NpuModel
from powerserve.convert.qnn.system_prompt import write_system_prompt
from powerserve.convert.qnn.text import TextTokens
from powerserve.core import machine
from powerserve.core.errors import BackendError
from powerserve.storage.lock import exclusive_lock
from powerserve.storage.progress import SILENT, Progress

EMULATOR_TIMEOUT_S = 4 * 3600.0  # of one graph; a large one at batch size 128 may take an hour

Compiled = Mapping[Part, CompiledPart]


def convert_for_npu(request: NpuConversion, progress: Progress = SILENT) -> ConversionReport:
    """Convert a model; the report is in the build folder whatever comes of it.

    Raises:
        BackendError: the compiler is missing or fails, or the result is not accepted.
        PowerServeError: the model or a text cannot be used, or memory does not suffice.
    """
    check_compiler()
    request.build.mkdir(parents=True, exist_ok=True)
    note = f"another conversion uses {request.build}; waiting for it"
    with (
        exclusive_lock(request.build / LOCK, waiting=lambda: progress.note(note)),
        closing(NpuModel.open(request.source, request.build, progress)) as model,
    ):
        estimate = request.memory(model.config)
        free = machine.available_memory()
        estimate.check(request.num_chunks, free, with_lm_head=request.with_lm_head)
        return _Conversion(request, model, progress).run()


class _Conversion:
    """A request with what its steps need."""

    def __init__(self, request: NpuConversion, model: NpuModel, progress: Progress) -> None:
        self._request = request
        self._model = model
        self._progress = progress
        self._build = BuildFolder(request.build)
        self._tokens: TextTokens = request.texts.encode(model.tokenizer(), request.sizes.cache_size)
        self._plan: Plan = make_plan(
            model.config,
            request.name,
            request.num_chunks,
            request.sizes,
            with_lm_head=request.with_lm_head,
        )

    def run(self) -> ConversionReport:
        """All steps."""
        quantised = self._quantise()
        compiled = self._compile()
        report = self._evaluate(quantised, compiled)
        report.write(self._request.build)
        if report.failures and not self._request.force:
            raise BackendError(_refusal(report, self._request.build))
        self._deliver(compiled)
        report.write(self._request.output)
        return report

    def _quantise(self) -> QuantisedRecord:
        """Write the quantised graphs, and the system prompt's K and V."""
        request, model, plan = self._request, self._model, self._plan
        lowering = request.lowering(model.config)
        calibration = Calibration(self._tokens.calibration, request.quantisation, lowering)
        record = write_quantised(
            model, request.source, plan, calibration, self._build, self._progress
        )
        if self._tokens.system:
            write_system_prompt(model, self._tokens.system, self._build.system_prompt)
        return record

    def _compile(self) -> Compiled:
        compiled = compile_plan(self._plan, self._build, self._request, self._progress)
        for part, binaries in compiled.items():
            self._check_tensors(part, binaries)
        return compiled

    def _check_tensors(self, part: Part, compiled: CompiledPart) -> None:
        """Read the device's binary back: graph names, tensors, types and shapes."""
        path = self._build.device_binary(part, self._request.compiling.soc.part)
        binary = inspect_binary(path, find_libraries())
        for batch_size in self._plan.sizes.batch_sizes:
            name = compiled.graph_name(self._plan, batch_size)
            check_graph(path, binary, GraphRequest(name, self._plan.spec(part, batch_size)))

    def _evaluate(self, quantised: QuantisedRecord, compiled: Compiled) -> ConversionReport:
        request = self._request
        graphs = tuple(self._compare(compiled)) if request.compare else ()
        return ConversionReport(
            model=request.name,
            soc=request.compiling.soc.part,
            sizes=request.sizes,
            num_system_tokens=len(self._tokens.system),
            parts=part_reports(compiled),
            layer_errors=quantised.layer_errors,
            perplexity=measure_perplexity(self._model, self._plan, self._build, self._tokens),
            limits=request.limits,
            graphs=graphs,
            failures=tuple(failures(graphs, request.limits)),
        )

    def _compare(self, compiled: Compiled) -> list[GraphErrors]:
        """Every compiled graph with the CPU."""
        soc = self._request.compiling.soc.part
        run = GateRun(self._model, self._plan, self._build, soc, _emulator)
        total = len(self._plan.parts) * len(self._plan.sizes.batch_sizes)
        graphs = []
        with self._progress.count("comparing", total) as advance:
            for errors in run.errors(compiled, self._tokens.calibration[0]):
                graphs.append(errors)
                advance(1)
        return graphs

    def _deliver(self, compiled: Compiled) -> None:
        request = self._request
        soc, system = request.compiling.soc, self._tokens.system
        Delivery(self._plan, self._build, soc, compiled, system).write(
            request.output,
            self._progress,
            with_emulator=request.with_emulator,
            with_cpu=request.with_cpu,
        )


def _emulator() -> Runtime:
    return ProcessRuntime("Qualcomm's emulator", time_limit_s=EMULATOR_TIMEOUT_S)


def _refusal(report: ConversionReport, build: Path) -> str:
    first, *others = report.failures
    more = f", and {len(others)} more graphs are wrong" if others else ""
    return (
        f"the compiler has made graphs that compute something else: {first}{more}; nothing was "
        f"delivered ({build / REPORT} has the details; --force delivers all the same)"
    )

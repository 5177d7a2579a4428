"""What came of a conversion, for report.json and for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from powerserve.convert.qnn.build_folder import REPORT
from powerserve.convert.qnn.compile_plan import CompiledPart
from powerserve.convert.qnn.evaluation import PerplexityReport
from powerserve.convert.qnn.gate import GateLimits, GraphErrors
from powerserve.convert.qnn.plan import GraphSizes, Part
from powerserve.storage.json_file import write_json
from powerserve.storage.progress import format_bytes


@dataclass(frozen=True, slots=True)
class PartReport:
    """The compilation of a part for the device: seconds for all batch sizes, peak in bytes."""

    label: str
    start_layer: int
    end_layer: int
    seconds: float
    peak_memory: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """How a model was converted, and how far the result is from what it should compute.

    Attributes:
        layer_errors: of quantisation, see QuantisedLayer; one for each layer.
        graphs: compiled graphs against the CPU; empty if they were not compared.
        failures: what the gate does not accept, in sentences.
    """

    model: str
    soc: str
    sizes: GraphSizes
    num_system_tokens: int
    parts: tuple[PartReport, ...]
    layer_errors: tuple[float, ...]
    perplexity: PerplexityReport
    limits: GateLimits
    graphs: tuple[GraphErrors, ...]
    failures: tuple[str, ...]

    def write(self, folder: Path) -> None:
        """Write report.json. Raises OSError."""
        write_json(folder / REPORT, asdict(self))

    def lines(self) -> Iterator[str]:
        """The report as text."""
        for part in self.parts:
            yield (
                f"{part.label}: {format_bytes(part.size_bytes)}, compiled in {part.seconds:.0f} s "
                f"with {format_bytes(part.peak_memory)} of memory"
            )
        yield from self._layer_lines()
        yield self._perplexity_line()
        yield from self._graph_lines()

    def _layer_lines(self) -> Iterator[str]:
        yield "error of each layer by quantisation, in % of what the layer adds:"
        percent = [f"{100 * error:.1f}" for error in self.layer_errors]
        for start in range(0, len(percent), 12):
            yield "  " + "  ".join(percent[start : start + 12])

    def _perplexity_line(self) -> str:
        measured = self.perplexity
        origin = "calibration has not seen" if measured.is_held_out else "calibration has seen"
        return (
            f"perplexity of {measured.num_tokens} tokens that {origin}: "
            f"{measured.quantised:.3f} ± {measured.quantised_error:.3f} quantised, "
            f"{measured.float32:.3f} in float32"
        )

    def _graph_lines(self) -> Iterator[str]:
        if not self.graphs:
            yield "the compiled graphs were not compared with the CPU"
        for graph in self.graphs:
            worst = min(graph.outputs, key=lambda each: each.cosine)
            largest = max(graph.outputs, key=lambda each: each.relative_error)
            yield (
                f"{graph.part}, batch size {graph.batch_size}: worst row's cosine "
                f"{worst.cosine:.6f} ({worst.name}), largest error "
                f"{100 * largest.relative_error:.2f} % ({largest.name})"
            )


def part_reports(compiled: Mapping[Part, CompiledPart]) -> tuple[PartReport, ...]:
    """The compilations for the device."""
    return tuple(
        PartReport(
            part.label,
            part.start_layer,
            part.end_layer,
            sum(binaries.device.seconds),
            binaries.device.peak_memory,
            binaries.device.size_bytes,
        )
        for part, binaries in compiled.items()
    )

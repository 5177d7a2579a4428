"""All binaries of a model: compiled side by side, as far as processors and memory go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from powerserve.convert.qnn.build_folder import BuildFolder
from powerserve.convert.qnn.child import ChildProcesses
from powerserve.convert.qnn.compiler import (
    CompiledBinary,
    CompileJob,
    CompileOptions,
    compile_binary,
)
from powerserve.convert.qnn.memory import MemoryEstimate
from powerserve.convert.qnn.parallel import Piece, run_side_by_side
from powerserve.convert.qnn.plan import Part, Plan
from powerserve.convert.qnn.request import NpuConversion
from powerserve.core import machine
from powerserve.storage.progress import Progress


@dataclass(frozen=True, slots=True)
class CompiledPart:
    """The binaries of a part.

    Attributes:
        device: with all batch sizes, ascending.
        emulator: one for each batch size; empty if none were wanted.
    """

    device: CompiledBinary
    emulator: Mapping[int, CompiledBinary]

    def graph_name(self, plan: Plan, batch_size: int) -> str:
        """What the graph is called in the device's binary."""
        return self.device.graph_names[plan.sizes.batch_sizes.index(batch_size)]


def compile_plan(
    plan: Plan, build: BuildFolder, request: NpuConversion, progress: Progress
) -> dict[Part, CompiledPart]:
    """Compile every part for the device, and for the emulator if the request needs that.

    At most `request.num_processes` compilations run at a time, and fewer where memory is short.

    Raises:
        BackendError: the compiler refuses a graph, crashes or runs out of time or memory.
    """
    options, estimate = request.compiling, request.memory(plan.config)
    batch_sizes = plan.sizes.batch_sizes if request.needs_emulator else ()
    jobs = [(part, size) for part in plan.parts for size in (None, *batch_sizes)]
    with ChildProcesses() as children, progress.count("compiling", len(jobs)) as advance:
        pieces = [
            Piece(
                partial(compile_binary, _job(plan, build, part, size, options), options, children),
                _memory(estimate, part, None if size is None else 1),
            )
            for part, size in jobs
        ]
        done: dict[tuple[Part, int | None], CompiledBinary] = {}
        memory = machine.available_memory()
        for index, binary in run_side_by_side(pieces, request.num_processes, memory, children.end):
            done[jobs[index]] = binary
            advance(1)
    return {
        part: CompiledPart(done[part, None], {size: done[part, size] for size in batch_sizes})
        for part in plan.parts
    }


def _memory(estimate: MemoryEstimate, part: Part, num_graphs: int | None) -> int:
    if part.is_lm_head:
        return estimate.lm_head(num_graphs)
    return estimate.chunk(part.end_layer - part.start_layer, num_graphs)


def _job(
    plan: Plan, build: BuildFolder, part: Part, batch_size: int | None, options: CompileOptions
) -> CompileJob:
    """One batch size for the emulator, or all of them for the device (None)."""
    soc = options.soc.part
    if batch_size is None:
        graphs = tuple(build.onnx_file(part, size) for size in plan.sizes.batch_sizes)
        binary = build.device_binary(part, soc)
    else:
        graphs = (build.onnx_file(part, batch_size),)
        binary = build.emulator_binary(part, batch_size, soc)
    binary.parent.mkdir(parents=True, exist_ok=True)
    return CompileJob(graphs, binary)

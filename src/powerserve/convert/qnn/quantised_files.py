"""The quantised graphs of a model as ONNX files: one per part and batch size, weights kept once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import msgspec

from powerserve.convert.qnn.build_folder import BuildFolder
from powerserve.convert.qnn.calibration import Calibration, QuantisedLayer, quantise_layers
from powerserve.convert.qnn.cpu_execution import CpuChunk, CpuGraph
from powerserve.convert.qnn.layer_store import LayerStore, layer_store
from powerserve.convert.qnn.lowering import lower_chunk, lower_lm_head
from powerserve.convert.qnn.onnx_graph import WEIGHTS_FILE, WeightFile
from powerserve.convert.qnn.plan import Part, Plan
from powerserve.convert.qnn.qdq import QuantisedLinear, QuantisedLinears
from powerserve.convert.qnn.source import NpuModel
from powerserve.core.errors import ConfigError
from powerserve.storage import atomic
from powerserve.storage.json_file import read_json, write_json
from powerserve.storage.progress import Progress

RECORD = "quantised.json"
FORMAT_VERSION = 2  # to be raised when the same request gives other graphs


@dataclass(frozen=True, slots=True)
class QuantisedRecord:
    """What a build folder holds: `key` tells requests apart.

    `layer_errors` are QuantisedLayer.error of every layer.
    """

    key: str
    layer_errors: tuple[float, ...]


def write_quantised(
    model: NpuModel,
    source: Path,
    plan: Plan,
    calibration: Calibration,
    build: BuildFolder,
    progress: Progress,
) -> QuantisedRecord:
    """Quantise the model and write its graphs, as far as that has not been done already.

    `source` is what the model was opened from. Raises a PowerServeError or OSError.
    """
    store = layer_store(build.layers, source, calibration)
    key = _key(store, plan)
    if (known := _finished(build, plan, key)) is not None:
        return known
    (build.graphs / RECORD).unlink(missing_ok=True)
    errors: list[float] = []
    total = plan.config.num_layers + (plan.lm_head is not None)
    layers = _stored(model, calibration, store, total, progress)
    for part in plan.chunks:
        found = list(islice(layers, part.end_layer - part.start_layer))
        errors += [layer.error for layer in found]
        _write_part(model, plan, part, _merged(found), calibration, build)
    if plan.lm_head is not None:
        _write_part(model, plan, plan.lm_head, next(layers).linears, calibration, build)
    record = QuantisedRecord(key, tuple(errors))
    write_json(build.graphs / RECORD, asdict(record))
    return record


def open_chunk(model: NpuModel, plan: Plan, build: BuildFolder, part: Part) -> CpuChunk:
    """A quantised chunk on the CPU, at the largest batch size. Raises BackendError."""
    batch_size = plan.sizes.batch_sizes[-1]
    graph = CpuGraph(build.onnx_file(part, batch_size), {}, num_threads=0)
    return CpuChunk(graph, plan.spec(part, batch_size), plan.shape(part, batch_size), model)


def _stored(
    model: NpuModel, calibration: Calibration, store: LayerStore, total: int, progress: Progress
) -> Iterator[QuantisedLayer]:
    """The layers, and the LM head if `total` includes it, saved as they are made."""
    saved: set[int] = set()

    def load(layer: int) -> QuantisedLayer | None:
        quantised = store.load(layer)
        if quantised is not None:
            saved.add(layer)
        return quantised

    layers = quantise_layers(model, calibration, load)
    with progress.count("quantising", total) as advance:
        for layer, quantised in enumerate(islice(layers, total)):
            if layer not in saved:
                store.save(layer, quantised)
            advance(1)
            yield quantised


def _merged(layers: list[QuantisedLayer]) -> dict[str, QuantisedLinear]:
    return {name: linear for layer in layers for name, linear in layer.linears.items()}


def _write_part(
    model: NpuModel,
    plan: Plan,
    part: Part,
    linears: Mapping[str, QuantisedLinear],
    calibration: Calibration,
    build: BuildFolder,
) -> None:
    """Write the graphs of a part for all batch sizes, and the weights that they share."""
    folder = build.graphs / part.folder
    folder.mkdir(parents=True, exist_ok=True)
    writer = QuantisedLinears(linears)
    with atomic.new_file(folder / WEIGHTS_FILE) as file:
        weights = WeightFile(file, WEIGHTS_FILE)
        for batch_size in plan.sizes.batch_sizes:
            if part.is_lm_head:
                graph = lower_lm_head(model, batch_size, writer)
            else:
                shape = plan.shape(part, batch_size)
                graph = lower_chunk(model, shape, calibration.lowering, writer)
            graph.save(build.onnx_file(part, batch_size), weights)


def _finished(build: BuildFolder, plan: Plan, key: str) -> QuantisedRecord | None:
    try:
        record = read_json(build.graphs / RECORD, QuantisedRecord)
    except ConfigError:
        return None
    files = (
        build.onnx_file(part, batch_size)
        for part in plan.parts
        for batch_size in plan.sizes.batch_sizes
    )
    return record if record.key == key and all(path.is_file() for path in files) else None


def _key(store: LayerStore, plan: Plan) -> str:
    """A digest of everything that decides what the graphs are."""
    return hashlib.sha256(msgspec.json.encode((FORMAT_VERSION, store.key, plan))).hexdigest()

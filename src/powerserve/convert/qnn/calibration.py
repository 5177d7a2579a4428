"""Quantisation of a model layer by layer, on the way of a text through it.

Every layer is run in floating point on the hidden states of a text; its matrices are quantised with
what was seen; the outputs of the quantised layer go into the next one, which can thus make up for
errors of those before it. Memory holds one layer and the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from powerserve.backend.base import FloatArray
from powerserve.backend.qnn.tensors import ChunkShape
from powerserve.convert.qnn.cpu_execution import CpuChunk, CpuGraph, CpuLMHead
from powerserve.convert.qnn.linear import LinearWriter
from powerserve.convert.qnn.lowering import LoweringOptions, lower_chunk, lower_lm_head
from powerserve.convert.qnn.qdq import QuantisedLinear, QuantisedLinears
from powerserve.convert.qnn.quantise import (
    FLOAT_BITS,
    QuantisationOptions,
    ScaleSearch,
    quantise_matrix,
)
from powerserve.convert.qnn.source import NpuModel
from powerserve.convert.qnn.statistics import LinearObserver, LinearStatistics
from powerserve.core.errors import ModelFileError

BATCH_SIZE = 128  # tokens that are computed at once
BLOCK_HEADROOM = 4.0
"""The emulator of QAIRT 2.51 clips the sums of single blocks of weights to the range of a layer's
output, which they may leave although the output does not."""
MAX_ROUNDING_NOISE = 0.005
"""Matrices stay in floating point whose activations 16 bits would round more coarsely, because the
first token of a text is so much larger than others: usually one or two `ffn_down` of a model."""

Linears = Mapping[str, QuantisedLinear]


@dataclass(frozen=True, slots=True)
class QuantisedLayer:
    """The matrices of one layer (or of the LM head) that are quantised, by part.

    `error` is what quantisation changes in the layer's contribution to the residual stream:
    ‖quantised - float‖ / ‖float‖ over the calibration text.
    """

    linears: Linears
    error: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How a model is quantised.

    Attributes:
        texts: token ids, each computed on its own from position 0.
        num_threads: of the CPU; 0: all.
    """

    texts: Sequence[Sequence[int]]
    quantisation: QuantisationOptions = field(default_factory=QuantisationOptions)
    lowering: LoweringOptions = field(default_factory=LoweringOptions)
    num_threads: int = 0


KnownLayers = Callable[[int], QuantisedLayer | None]
"""A layer that was quantised before; the LM head is the one after the last."""


def quantise_layers(
    model: NpuModel, calibration: Calibration, known: KnownLayers = lambda layer: None
) -> Iterator[QuantisedLayer]:
    """Quantise the layers in order, and the LM head as the last; those that are known stay."""
    hidden = [model.embed(text) for text in calibration.texts]
    skipped: list[QuantisedLayer] = []  # the last layers, whose outputs nothing has needed yet
    for layer in range(model.config.num_layers + 1):
        quantised = known(layer)
        if quantised is None:
            for index, each in enumerate(skipped, layer - len(skipped)):
                writer = QuantisedLinears(each.linears)
                hidden = _run_layer(model, index, hidden, calibration, writer)
            skipped.clear()
            quantised, hidden = _quantise_layer(model, layer, hidden, calibration)
        else:
            skipped.append(quantised)
        yield quantised


def observe_layers(model: NpuModel, calibration: Calibration) -> Iterator[LinearObserver]:
    """What the linear layers of each layer read and make when nothing is quantised."""
    hidden = [model.embed(text) for text in calibration.texts]
    for layer in range(model.config.num_layers):
        observer = LinearObserver(with_hessian=False)
        hidden = _run_layer(model, layer, hidden, calibration, observer)
        yield observer


def _quantise_layer(
    model: NpuModel, layer: int, hidden: list[FloatArray], calibration: Calibration
) -> tuple[QuantisedLayer, list[FloatArray]]:
    if layer == model.config.num_layers:
        return _quantise_lm_head(model, hidden, calibration), hidden
    options = calibration.quantisation
    observer = LinearObserver(with_hessian=options.scales is ScaleSearch.GPTQ)
    expected = _run_layer(model, layer, hidden, calibration, observer)
    linears = _quantise(observer, options.bits, options)
    if not linears:
        return QuantisedLayer({}, 0.0), expected
    made = _run_layer(model, layer, hidden, calibration, QuantisedLinears(linears))
    return QuantisedLayer(linears, _relative_error(made, expected, hidden)), made


def _run_layer(
    model: NpuModel,
    layer: int,
    hidden: list[FloatArray],
    calibration: Calibration,
    linears: LinearWriter,
) -> list[FloatArray]:
    """The hidden states after a layer, whose matrices `linears` writes.

    Raises ModelFileError if numbers on the way are not finite.
    """
    cache_size = max(len(each) for each in hidden)
    shape = ChunkShape(layer, layer + 1, BATCH_SIZE, cache_size, cache_size + BATCH_SIZE)
    graph = lower_chunk(model, shape, calibration.lowering, linears)
    chunk = CpuChunk(CpuGraph.of(graph, calibration.num_threads), graph.spec, shape, model)
    observer = linears if isinstance(linears, LinearObserver) else None
    observe = None if observer is None else observer.observe
    with np.errstate(over="ignore", invalid="ignore"):
        result = [chunk.run(each, observe=observe) for each in hidden]
    is_finite = all(np.isfinite(each).all() for each in result)
    if not is_finite or (observer is not None and not observer.is_finite):
        raise ModelFileError(
            f"{model.path}: layer {layer} computes numbers that are not finite: the weights are "
            "damaged, or attention does not fit into float16"
        )
    return result


def _quantise_lm_head(
    model: NpuModel, hidden: list[FloatArray], calibration: Calibration
) -> QuantisedLayer:
    options = calibration.quantisation
    if options.lm_head_bits == FLOAT_BITS:
        return QuantisedLayer({}, 0.0)
    observer = LinearObserver(with_hessian=options.scales is ScaleSearch.GPTQ)
    graph = lower_lm_head(model, BATCH_SIZE, observer)
    lm_head = CpuLMHead(CpuGraph.of(graph, calibration.num_threads), BATCH_SIZE)
    for states in hidden:
        for outputs in lm_head.run(states):
            observer.observe(outputs)
    return QuantisedLayer(_quantise(observer, lambda part: options.lm_head_bits, options), 0.0)


def _quantise(
    observer: LinearObserver, bits_of: Callable[[str], int], options: QuantisationOptions
) -> Linears:
    return {
        name: _quantise_linear(seen, bits_of(name), options)
        for name, seen in observer.statistics.items()
        if bits_of(name) != FLOAT_BITS and _can_be_quantised(seen)
    }


def _can_be_quantised(seen: LinearStatistics) -> bool:
    return not seen.part.is_float and seen.rounding_noise <= MAX_ROUNDING_NOISE


def _quantise_linear(
    seen: LinearStatistics, bits: int, options: QuantisationOptions
) -> QuantisedLinear:
    matrix = quantise_matrix(seen.part.matrix(), seen.input, bits, options)
    has_blocks = matrix.scales.shape[1] > 1
    output = seen.output.range.widened(BLOCK_HEADROOM) if has_blocks else seen.output.range
    return QuantisedLinear(matrix, seen.input.activation.range, output)


def _relative_error(
    made: list[FloatArray], expected: list[FloatArray], before: list[FloatArray]
) -> float:
    difference = sum(float(np.square(a - b).sum()) for a, b in zip(made, expected, strict=True))
    change = sum(float(np.square(a - b).sum()) for a, b in zip(expected, before, strict=True))
    return float(np.sqrt(difference / change)) if change else 0.0

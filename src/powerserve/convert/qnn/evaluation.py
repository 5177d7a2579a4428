"""Perplexity of a converted model on the CPU, beside that of the model in float32."""

from __future__ import annotations

from dataclasses import dataclass

from powerserve.convert.qnn.build_folder import BuildFolder
from powerserve.convert.qnn.cpu_execution import CpuGraph, CpuLMHead
from powerserve.convert.qnn.float_layers import BATCH_SIZE, float_layers
from powerserve.convert.qnn.lowering import lower_lm_head
from powerserve.convert.qnn.perplexity import perplexity
from powerserve.convert.qnn.plan import Plan
from powerserve.convert.qnn.quantised_files import open_chunk
from powerserve.convert.qnn.source import NpuModel
from powerserve.convert.qnn.text import TextTokens


@dataclass(frozen=True, slots=True)
class PerplexityReport:
    """How well the quantised graphs predict a text.

    Attributes:
        num_tokens: of the text.
        is_held_out: whether calibration has not seen it.
        quantised, float32: perplexities.
        quantised_error, float32_error: their standard errors.
    """

    num_tokens: int
    is_held_out: bool
    quantised: float
    quantised_error: float
    float32: float
    float32_error: float


def measure_perplexity(
    model: NpuModel, plan: Plan, build: BuildFolder, tokens: TextTokens
) -> PerplexityReport:
    """Compute both on the text for evaluation; the system prompt before it is not scored."""
    texts, num_skipped = tokens.evaluation, len(tokens.start)
    quantised = perplexity(
        model,
        (open_chunk(model, plan, build, part) for part in plan.chunks),
        _quantised_lm_head(model, plan, build),
        texts,
        num_skipped,
    )
    size = max(map(len, texts))
    lm_head = CpuLMHead(CpuGraph.of(lower_lm_head(model, BATCH_SIZE)), BATCH_SIZE)
    exact = perplexity(model, float_layers(model, size), lm_head, texts, num_skipped)
    return PerplexityReport(
        num_tokens=sum(len(text) - num_skipped for text in texts),
        is_held_out=tokens.is_held_out,
        quantised=quantised.value,
        quantised_error=quantised.error,
        float32=exact.value,
        float32_error=exact.error,
    )


def _quantised_lm_head(model: NpuModel, plan: Plan, build: BuildFolder) -> CpuLMHead:
    batch_size = plan.sizes.batch_sizes[-1]
    if plan.lm_head is None:
        return CpuLMHead(CpuGraph.of(lower_lm_head(model, batch_size)), batch_size)
    graph = CpuGraph(build.onnx_file(plan.lm_head, batch_size), {}, num_threads=0)
    return CpuLMHead(graph, batch_size)

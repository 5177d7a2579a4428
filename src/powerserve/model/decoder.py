"""The frame shared by llama-like models: embedding, pre-norm decoder layers, output layer.

Tensor names are those of GGUF files (`token_embd.weight`, `blk.N.attn_q.weight`, …).
"""

from __future__ import annotations

from collections.abc import Callable

from powerserve.core.config import ModelConfig
from powerserve.graph import Graph, Value, Weight
from powerserve.model.attention import output_projection
from powerserve.model.ffn import swiglu_ffn

HIDDEN = "hidden"
"""The name under which graphs let see what the output layer gets: [OUTPUTS, embed_dim]."""

LayerPart = Callable[[Graph, ModelConfig, int, Value], Value]
"""A piece of layer `int`: reads normalised activations, returns what the piece makes of them."""


def build_decoder(config: ModelConfig, attention: LayerPart) -> Graph:
    """The graph from token ids to the logits [OUTPUTS, vocabulary] of the wanted rows.

    `attention` gives [T, heads · head_dim], before the output projection.
    """
    graph = Graph()
    table = Weight("token_embd.weight", (config.vocab_size, config.embed_dim))
    x = graph.embedding(graph.token_ids, table)
    for layer in range(config.num_layers):
        x = _decoder_layer(graph, config, layer, x, attention)
    x = graph.observed[HIDDEN] = _norm(graph, config, x, "output_norm.weight")
    output = table if config.tied_embeddings else Weight("output.weight", table.shape)
    graph.logits = graph.linear(x, output, name="logits")
    return graph


def _decoder_layer(
    graph: Graph, config: ModelConfig, layer: int, x: Value, attention: LayerPart
) -> Value:
    normed = _norm(graph, config, x, f"blk.{layer}.attn_norm.weight")
    attended = attention(graph, config, layer, normed)
    if layer == config.num_layers - 1:
        # No later token looks at these rows any more: keep only those whose logits are wanted.
        attended, x = graph.select_outputs(attended), graph.select_outputs(x)
    x = graph.add(x, output_projection(graph, config, layer, attended))
    normed = _norm(graph, config, x, f"blk.{layer}.ffn_norm.weight")
    return graph.add(x, swiglu_ffn(graph, config, layer, normed))


def _norm(graph: Graph, config: ModelConfig, x: Value, name: str) -> Value:
    return graph.rms_norm(x, Weight(name, (config.embed_dim,)), config.norm_eps)

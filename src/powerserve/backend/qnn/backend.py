"""The NPU backend: graphs that were compiled when the model was converted, and the host's part."""

from __future__ import annotations

from threading import Event

from powerserve.backend.base import (
    Backend,
    Cache,
    Capabilities,
    FloatArray,
    LoadedModel,
    StepShape,
    Weights,
)
from powerserve.backend.checks import check_weights
from powerserve.backend.ggml.backend import GgmlBackend
from powerserve.backend.ggml.output_layer import GgmlOutputLayer
from powerserve.backend.qnn.attention_bias import AttentionBias
from powerserve.backend.qnn.cache import CacheBuffers, QnnCache
from powerserve.backend.qnn.chunks import CompiledModel, load_graphs
from powerserve.backend.qnn.config_file import QnnFolder
from powerserve.backend.qnn.embedding import EmbeddingTable
from powerserve.backend.qnn.executable import QnnExecutable
from powerserve.backend.qnn.options import SystemPromptUse
from powerserve.backend.qnn.output_layer import NpuOutputLayer, OutputLayer
from powerserve.backend.qnn.placement import Placement
from powerserve.backend.qnn.positions import PositionTables
from powerserve.backend.qnn.runtime.base import Runtime
from powerserve.backend.qnn.system_prompt import SystemPrompt, read_system_prompt
from powerserve.backend.reference.dequantise import dequantise
from powerserve.backend.reference.operations import rms_norm
from powerserve.core import dtypes
from powerserve.core.config import ModelConfig
from powerserve.core.dtypes import DType
from powerserve.core.errors import BackendError, ConfigError, MemoryLimitError
from powerserve.graph import Graph, Weight


class QnnBackend(Backend):
    """Runs the compiled graphs of one model's folder."""

    name = "qnn"

    def __init__(
        self,
        folder: QnnFolder,
        runtime: Runtime,
        host: GgmlBackend,
        system_prompt: SystemPromptUse = SystemPromptUse.AUTO,
    ) -> None:
        """Args:
        folder: the compiled graphs.
        runtime: executes them; this backend closes it.
        host: computes the CPU's part; whoever made it closes it, later.
        system_prompt: what to do with the one in the folder.
        """
        self.folder = folder
        self.runtime = runtime
        self.host = host
        self.system_prompt = system_prompt
        self.num_threads = host.num_threads
        self.interrupted = Event()

    @property
    def device(self) -> str:
        return f"{self.name}, {self.runtime.name}, {self.folder.path.resolve()}"

    @property
    def kind_of_cells(self) -> str:
        """Cells depend on how the graphs were quantised, and on what comes before them."""
        return f"{self.name} {self.folder.files} {self.folder.stamp} {self.system_prompt}"

    def load(self, config: ModelConfig, graph: Graph, weights: Weights) -> QnnModel:
        """Load the graphs and the host's weights.

        Raises:
            BackendError: a binary cannot be used.
            ConfigError: the folder was made for another model.
            UnsupportedModelError: the model cannot be placed.
        """
        _check_layers(self.folder, config)
        placement = Placement.of(graph)
        check_weights(placement.host_graph(self.folder.files.has_lm_head), weights)
        graphs = load_graphs(self.folder, config, self.runtime)
        system_prompt = read_system_prompt(self.folder, config, self.system_prompt)
        return QnnModel(self, config, placement, weights, graphs, system_prompt)

    def interrupt(self) -> None:
        self.interrupted.set()
        self.host.interrupt()

    def resume(self) -> None:
        self.host.resume()
        self.interrupted.clear()

    def close(self) -> None:
        self.runtime.close()


class QnnModel(LoadedModel):
    """A model placed over NPU and CPU; its cache lies in the graphs' input buffers."""

    def __init__(
        self,
        backend: QnnBackend,
        config: ModelConfig,
        placement: Placement,
        weights: Weights,
        graphs: CompiledModel,
        system_prompt: SystemPrompt,
    ) -> None:
        files = backend.folder.files
        self.config = config
        self.placement = placement
        self.graphs = graphs
        self.prefix = system_prompt.prefix
        self.num_front = system_prompt.num_front
        self.batch_sizes = files.batch_sizes
        self.capabilities = Capabilities(
            kv_dtypes=(dtypes.F16,),
            max_cells=files.cache_size - self.num_front,
            compiles=False,
            batch_sizes=files.batch_sizes,
        )
        self.embedding = EmbeddingTable(
            backend.host.library, weights[placement.embedding.table.name]
        )
        self.positions = PositionTables(
            config, _optional(placement.rope.factors, weights), files.context_size
        )
        self.bias = AttentionBias(
            files.cache_size, files.model_parameters.attention_mask_value, self.num_front
        )
        self._norm_weight = weights.get(placement.norm.weight.name)
        self.weights_bytes = backend.folder.size_bytes
        chunks = graphs.chunks[files.batch_sizes[0]]
        self._buffers = CacheBuffers([chunk.cached for chunk in chunks])
        self._interrupted = backend.interrupted
        self._front = system_prompt.front
        self._host_output: GgmlOutputLayer | None = None
        self.output_layer = self._make_output_layer(backend.host, weights)

    def normed(self, hidden: FloatArray) -> FloatArray:
        """The final norm on the CPU: hidden [N, D] after the last layer -> [N, D].

        Raises BackendError if the model's file has embeddings only.
        """
        norm = self.placement.norm
        if self._norm_weight is None:
            raise BackendError(
                f"the model's file has no {norm.weight.name}, so texts cannot be embedded"
            )
        return rms_norm(hidden, dequantise(self._norm_weight), norm.eps)

    def new_cache(self, num_cells: int, dtype: DType) -> QnnCache:
        """A cache of cells; with several, each change from one to another copies both.

        Raises BackendError for a type other than F16, MemoryLimitError for more cells than the
        graphs were compiled for.
        """
        limit = self.capabilities.max_cells
        assert limit is not None
        if dtype != dtypes.F16:
            raise BackendError(f"the NPU keeps its KV cache in F16, not {dtype}")
        if num_cells > limit:
            raise MemoryLimitError(
                f"the NPU's graphs were compiled for a cache of {limit} tokens, not {num_cells}; "
                "choose a smaller context (-c), a shorter text, or --no-qnn"
            )
        cache = QnnCache(self._buffers, num_cells, self.num_front)
        if self.num_front:
            cache.fill_front(self._front)
        return cache

    def compile(self, shape: StepShape, cache: Cache) -> QnnExecutable:
        """Steps of every shape run alike."""
        assert isinstance(cache, QnnCache)
        return QnnExecutable(self, cache, self._interrupted)

    def close(self) -> None:
        if self._host_output is not None:
            self._host_output.close()

    def _make_output_layer(self, host: GgmlBackend, weights: Weights) -> OutputLayer:
        if self.graphs.heads:
            return NpuOutputLayer(self.graphs.heads)
        self._host_output = GgmlOutputLayer(host, self.placement.nodes[-2:], weights)
        self.weights_bytes += self._host_output.size_bytes
        return self._host_output


def _check_layers(folder: QnnFolder, config: ModelConfig) -> None:
    if folder.files.num_layers != config.num_layers:
        raise ConfigError(
            f"{folder.path} holds {folder.files.num_layers} layers, but the model has "
            f"{config.num_layers}: the files do not belong together"
        )


def _optional(weight: Weight | None, weights: Weights) -> FloatArray | None:
    return None if weight is None else dequantise(weights[weight.name])

"""The CPU backend: ggml's kernels behind the backend interface."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from powerserve.backend.base import (
    Backend,
    Cache,
    Capabilities,
    LoadedModel,
    StepShape,
    Weights,
)
from powerserve.backend.ggml.cache import GgmlCache
from powerserve.backend.ggml.cpu import check_cpu
from powerserve.backend.ggml.executable import ComputeBuffer, GgmlExecutable
from powerserve.backend.ggml.interrupt import AbortFlag
from powerserve.backend.ggml.kernels.choice import (
    KernelChoice,
    Packing,
    open_kernels,
    packable_types,
)
from powerserve.backend.ggml.kernels.library import KernelLibrary
from powerserve.backend.ggml.kernels.measurement import better_types
from powerserve.backend.ggml.library import GgmlLibrary
from powerserve.backend.ggml.locate import library_folder
from powerserve.backend.ggml.placement import matrices
from powerserve.backend.ggml.threads import DEFAULT_POLL, ThreadPool
from powerserve.backend.ggml.weights import WeightStore
from powerserve.core import dtypes
from powerserve.core.config import ModelConfig
from powerserve.core.dtypes import DType
from powerserve.core.machine import default_threads
from powerserve.graph import Graph


@dataclass(frozen=True, slots=True)
class GgmlOptions:
    """How the CPU backend runs; the defaults suit a machine that also does other things."""

    num_threads: int = 0  # 0: as many as this process may use
    poll: int = DEFAULT_POLL
    use_mmap: bool = False  # weights that need no repacking stay in the file's pages
    kernels: KernelChoice = KernelChoice.AUTO


class GgmlBackend(Backend):
    """ggml from `folder` (default: the best library on this machine), with its own threads.

    Raises:
        BackendError: the library is missing, incompatible or built for a newer CPU.
    """

    name = "ggml"

    def __init__(self, options: GgmlOptions | None = None, folder: Path | None = None) -> None:
        self.options = options or GgmlOptions()
        self.library = GgmlLibrary(folder or library_folder())
        check_cpu(self.library)
        self.threads = ThreadPool(
            self.library, self.options.num_threads or default_threads(), self.options.poll
        )
        self.handle: int = self.library.backend_cpu_init()
        self.num_threads = self.threads.num_threads
        self.threads.attach(self.handle)
        self._abort = AbortFlag(self.library, self.handle)

    @property
    def device(self) -> str:
        kernels = self.kernels
        ours = "" if kernels is None else f", {kernels.path}, {self.options.kernels}"
        return f"{super().device}, {self.library.folder}{ours}"

    def load(self, config: ModelConfig, graph: Graph, weights: Weights) -> GgmlModel:
        return self.place(config, graph, weights, self._packing(graph, weights))

    def place(
        self, config: ModelConfig, graph: Graph, weights: Weights, packing: Packing | None
    ) -> GgmlModel:
        """As `load`, with the matrices that `packing` names packed for our own kernels."""
        return GgmlModel(self, config, graph, weights, packing)

    @cached_property
    def kernels(self) -> KernelLibrary | None:
        """Our own, if they are wanted and there are any; a model may use them or not."""
        return open_kernels(self.options.kernels, self.library.folder)

    def _packing(self, graph: Graph, weights: Weights) -> Packing | None:
        """What the user's choice means for a model's matrices."""
        kernels = self.kernels
        if kernels is None:
            return None
        dtypes = packable_types(kernels, matrices(graph, weights))
        if self.options.kernels is KernelChoice.AUTO:
            dtypes = better_types(self, kernels, dtypes)
        return Packing(kernels, dtypes) if dtypes else None

    def interrupt(self) -> None:
        self._abort.raise_flag()

    def resume(self) -> None:
        self._abort.clear()

    def close(self) -> None:
        """End the threads; models must be closed before."""
        self.library.backend_free(self.handle)
        self.threads.close()


class GgmlModel(LoadedModel):
    """A model's weights in ggml's memory."""

    capabilities = Capabilities(kv_dtypes=(dtypes.F16, dtypes.Q8_0, dtypes.F32))

    def __init__(
        self,
        backend: GgmlBackend,
        config: ModelConfig,
        graph: Graph,
        weights: Weights,
        packing: Packing | None,
    ) -> None:
        self.config = config
        self.graph = graph
        self.library = backend.library
        self.backend_handle = backend.handle
        self.threads = backend.threads
        self.weights = WeightStore(
            backend.library,
            backend.library.backend_get_device(backend.handle),
            graph,
            weights,
            use_mmap=backend.options.use_mmap,
            packing=packing,
        )
        self.packing = packing
        self.weights_bytes = self.weights.size_bytes
        self.compute_buffer = ComputeBuffer(
            backend.library, backend.library.backend_cpu_buffer_type()
        )

    def new_cache(self, num_cells: int, dtype: DType) -> GgmlCache:
        return GgmlCache(self.library, self.config, num_cells, dtype)

    def compile(self, shape: StepShape, cache: Cache) -> GgmlExecutable:
        assert isinstance(cache, GgmlCache)
        return GgmlExecutable(self, cache, shape)

    def close(self) -> None:
        self.compute_buffer.close()
        self.weights.close()

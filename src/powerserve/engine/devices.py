"""Where models run: the CPU, opened once, and the NPU for every model that has files for it."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from powerserve.backend.base import Backend, LoadedModel
from powerserve.backend.qnn.options import NpuMode
from powerserve.core.errors import PowerServeError, UsageError
from powerserve.engine.memory_plan import MemoryPlan, plan_compiled
from powerserve.engine.model_files import ModelFiles
from powerserve.storage.model_folder import ModelFolder

if TYPE_CHECKING:
    from powerserve.backend.ggml.backend import GgmlBackend
    from powerserve.engine.loader import LoadOptions

BACKENDS = ("ggml", "reference")

logger = logging.getLogger("powerserve.engine")


@dataclass(frozen=True, slots=True)
class PlacedModel:
    """A model in memory, the device that runs it, and what it takes."""

    backend: Backend
    model: LoadedModel
    plan: MemoryPlan


class Devices:
    """Opens devices when a model needs them; close it when all models are closed."""

    def __init__(self, options: LoadOptions) -> None:
        self._options = options
        self._undo = ExitStack()

    def load(
        self,
        files: ModelFiles,
        context_size: int | None,
        cache_size: int = 0,
        *,
        is_draft: bool = False,
    ) -> PlacedModel:
        """Put a model where it shall run; sizes in tokens, None and 0: see `memory_plan`.

        A draft model without NPU files runs on the CPU even where the NPU is asked for.

        Raises:
            PowerServeError: a subclass says what is wrong with the files, options or machine.
        """
        if npu_files := self._npu_files(files, is_draft):
            try:
                return self._load_on_npu(files, npu_files, context_size)
            except PowerServeError as error:
                if self._options.npu.mode is not NpuMode.AUTO:
                    raise
                logger.warning("%s runs on the CPU: %s", files.source.name, error)
        plan = files.plan(
            kv_dtype=self._options.kv_dtype,
            batch_size=self._options.batch_size,
            context_size=context_size,
            cache_size=cache_size,
        )
        backend = self._cpu()
        return PlacedModel(backend, _load(backend, files), plan)

    def close(self) -> None:
        """Close every device."""
        self._undo.close()

    def _npu_files(self, files: ModelFiles, is_draft: bool) -> Path | None:
        """The model's `qnn` folder, if there is one and it is wanted."""
        mode, source = self._options.npu.mode, files.source
        if mode is NpuMode.OFF or self._options.backend != "ggml":
            return None
        if source.folder is not None and ModelFolder(source.folder).has_npu_files:
            return ModelFolder(source.folder).npu_files
        if mode is NpuMode.AUTO or is_draft:
            return None
        raise UsageError(
            f"{source.name} has no NPU files (a model folder with qnn/config.json); "
            "`powerserve qnn convert` makes them"
        )

    def _load_on_npu(
        self, files: ModelFiles, npu_files: Path, context_size: int | None
    ) -> PlacedModel:
        from powerserve.backend.qnn.opening import open_backend

        options = self._options
        with ExitStack() as undo:
            backend = open_backend(npu_files, options.npu, self._host)
            undo.callback(backend.close)
            model = _load(backend, files)
            self._undo.push(undo.pop_all())
        cells = model.capabilities.max_cells
        assert cells is not None
        return PlacedModel(
            backend,
            model,
            plan_compiled(
                files.config, cells, model.weights_bytes, options.batch_size, context_size
            ),
        )

    def _cpu(self) -> Backend:
        if self._options.backend == "ggml":
            return self._host
        if self._options.backend == "reference":
            from powerserve.backend.reference import ReferenceBackend

            return ReferenceBackend()
        raise UsageError(
            f"there is no backend {self._options.backend!r}; choose from {', '.join(BACKENDS)}"
        )

    @cached_property
    def _host(self) -> GgmlBackend:
        from powerserve.backend.ggml.backend import GgmlBackend, GgmlOptions
        from powerserve.backend.ggml.kernels.choice import KernelChoice

        options = self._options
        settings: dict[str, Any] = {} if options.poll is None else {"poll": options.poll}
        host = GgmlBackend(
            GgmlOptions(
                num_threads=options.num_threads,
                use_mmap=options.use_mmap,
                kernels=KernelChoice(options.kernels),
                **settings,
            ),
            options.ggml_folder,
        )
        self._undo.callback(host.close)
        return host


def _load(backend: Backend, files: ModelFiles) -> LoadedModel:
    return backend.load(files.config, files.graph, files.weights.tensors)

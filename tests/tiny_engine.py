"""A tiny model in the ggml backend, and engines over it that run to their end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from powerserve.backend.base import LoadedModel
from powerserve.backend.ggml.backend import GgmlBackend, GgmlOptions
from powerserve.engine.engine import Engine
from powerserve.model.config import config_from_metadata
from powerserve.model.registry import build_graph
from powerserve.storage.gguf import GGUFFile
from tiny_models import TinyModel, write_tiny_model


@contextmanager
def tiny_ggml_model(folder: Path) -> Iterator[LoadedModel]:
    """One, loaded with a single thread."""
    path = write_tiny_model(folder / "tiny.gguf", TinyModel())
    backend = GgmlBackend(GgmlOptions(num_threads=1))
    with GGUFFile.open(path) as file:
        config = config_from_metadata(file.metadata, file.tensors)
        loaded = backend.load(config, build_graph(config), file.tensors)
        yield loaded
        loaded.close()
    backend.close()


def run(engine: Engine) -> None:
    """Step until nothing is left to do."""
    for _ in range(10_000):
        if not engine.has_work:
            return
        engine.step()
    raise AssertionError("the engine does not come to an end")

"""Our kernels against ggml's on this machine: a matrix of each type, timed once and remembered."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from powerserve.backend.ggml.kernels.choice import Packing
from powerserve.backend.ggml.kernels.library import KernelLibrary
from powerserve.backend.ggml.quantisers import Quantisers
from powerserve.backend.ggml.single_product import RawTensor, SingleProduct
from powerserve.core import machine
from powerserve.core.dtypes import DType
from powerserve.core.errors import ConfigError
from powerserve.storage.cache_folder import cache_folder
from powerserve.storage.json_file import read_json, write_json

if TYPE_CHECKING:
    from powerserve.backend.ggml.backend import GgmlBackend

ROWS, FEATURES = 8192, 2048  # too big for the caches that belong to a core
DISTINCT_ROWS = 32  # are quantised; the others repeat them
PROMPT_TOKENS = 64  # in the step that stands for prompts
PROMPT_SHARE = 4  # prompt tokens for each token of an answer
ROUNDS = 8
# Ours may seem so much slower: it is what a measurement errs by, and not measured is what ours gain
# in between: steps of a few tokens, fewer operations, attention.
TOLERANCE = 1.05


@dataclass(frozen=True, slots=True)
class Comparison:
    """Seconds that a product of 1 and of PROMPT_TOKENS tokens takes."""

    ggml: tuple[float, float]
    native: tuple[float, float]

    @property
    def is_native_better(self) -> bool:
        """Whether it is for a token of an answer and the prompt tokens that come with it."""
        return _cost(self.native) < TOLERANCE * _cost(self.ggml)


def better_types(
    backend: GgmlBackend, kernels: KernelLibrary, dtypes: Iterable[DType]
) -> frozenset[DType]:
    """The types that are better multiplied by our kernels than by ggml on this machine."""
    file = _file(backend, kernels)
    known = _read(file)
    missing = [dtype for dtype in dtypes if str(dtype) not in known]
    if missing:
        known |= {str(dtype): compare(backend, kernels, dtype) for dtype in missing}
        with suppress(OSError):  # then it is measured again
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {name: asdict(each) for name, each in sorted(known.items())})
    return frozenset(dtype for dtype in dtypes if known[str(dtype)].is_native_better)


def compare(backend: GgmlBackend, kernels: KernelLibrary, dtype: DType) -> Comparison:
    """Time both, turn by turn."""
    weight = _weight(backend, dtype)
    packings = (None, Packing(kernels, frozenset((dtype,))))
    seconds = [[float("inf")] * 2 for _ in packings]
    table = np.ones((PROMPT_TOKENS, FEATURES), np.float32)
    products = [SingleProduct(backend, table, weight, packing) for packing in packings]
    try:
        for index, num_tokens in enumerate((1, PROMPT_TOKENS)):
            for _ in range(ROUNDS):
                for product, best in zip(products, seconds, strict=True):
                    best[index] = min(best[index], _time(product, num_tokens))
    finally:
        for product in products:
            product.close()
    ggml, native = ((short, long) for short, long in seconds)
    return Comparison(ggml, native)


def _time(product: SingleProduct, num_tokens: int) -> float:
    start = perf_counter()
    product(num_tokens)
    return perf_counter() - start


def _cost(seconds: tuple[float, float]) -> float:
    return seconds[0] + PROMPT_SHARE * seconds[1] / PROMPT_TOKENS


def _weight(backend: GgmlBackend, dtype: DType) -> RawTensor:
    values = np.random.default_rng(0).standard_normal((DISTINCT_ROWS, FEATURES), np.float32)
    rows = Quantisers(backend.library).quantise(values, dtype)
    return RawTensor((ROWS, FEATURES), dtype, np.tile(rows, ROWS // DISTINCT_ROWS))


def _file(backend: GgmlBackend, kernels: KernelLibrary) -> Path:
    """Its name says what the outcome depends on."""
    facts = (
        machine.cpu_name(), backend.num_threads, str(backend.library.folder), str(kernels.path),
        kernels.instruction_set,
    )  # fmt: skip
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:24]
    return cache_folder() / "kernel-timings" / f"{digest}.json"


def _read(file: Path) -> dict[str, Comparison]:
    try:
        return read_json(file, dict[str, Comparison])
    except ConfigError:
        return {}

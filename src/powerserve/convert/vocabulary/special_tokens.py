"""Which tokens begin and end a text, and which of them are added to every prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from powerserve.convert.vocabulary.files import (
    TokenizerFiles,
    TokenizerJson,
    components,
    optional_json,
)

# Roles as transformers calls them, with GGUF's names for them (`tokenizer.ggml.…_token_id`).
ROLES = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "sep": "seperator",  # the specification's own spelling
    "pad": "padding",
    "mask": "mask",
}


def special_token_metadata(
    files: TokenizerFiles, ids: Mapping[str, int], model_config: Mapping[str, Any]
) -> dict[str, object]:
    """The ids of tokens with a role, and whether BOS and EOS are added to a text.

    `ids` maps the vocabulary's texts to ids, `model_config` is config.json. The text in the
    tokenizer's configuration counts first, then the number in the model's.
    """
    generation = optional_json(files.folder / "generation_config.json")
    roles: dict[str, int] = {}
    for role in ROLES:
        found = ids.get(_text_of(files.config.get(f"{role}_token")))
        for source in (model_config, generation):
            if found is None:
                found = _id_in(source.get(f"{role}_token_id"), len(ids))
        if found is not None:
            roles[role] = found
    keys: dict[str, object] = {
        f"tokenizer.ggml.{ROLES[role]}_token_id": token_id for role, token_id in roles.items()
    }
    for role, edge in (("bos", 0), ("eos", -1)):
        adds = role in roles and _is_added(files, role, edge, roles, ids)
        keys[f"tokenizer.ggml.add_{role}_token"] = adds
    return keys


def _is_added(
    files: TokenizerFiles, role: str, edge: int, roles: Mapping[str, int], ids: Mapping[str, int]
) -> bool:
    declared = files.config.get(f"add_{role}_token")
    if isinstance(declared, bool):
        return declared
    if files.json is None:
        return role == "bos"  # what transformers assumes for SentencePiece
    return ids.get(_template_edge(files.json, edge)) == roles[role]


def _template_edge(tokenizer: TokenizerJson, edge: int) -> str:
    """The special token that the post-processor puts first (0) or last (-1), or ""."""
    for part in components(tokenizer.post_processor, "processors"):
        single = part.get("single")
        if part.get("type") == "TemplateProcessing" and isinstance(single, list) and single:
            match single[edge]:
                case {"SpecialToken": {"id": str(text)}}:
                    return text
    return ""


def _text_of(token: Any) -> str:
    """A token given by its text, or by an object with its text; "" for anything else."""
    match token:
        case str(text) | {"content": str(text)}:
            return text
    return ""


def _id_in(value: Any, vocab_size: int) -> int | None:
    """A token id, or the first of several; None unless it is one of the vocabulary."""
    if isinstance(value, list):
        value = value[0] if value else None
    is_id = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab_size
    return value if is_id else None

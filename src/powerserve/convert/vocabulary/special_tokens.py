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
_EDGES = {"bos": 0, "eos": -1}  # where in a text they may be


def special_token_metadata(
    files: TokenizerFiles, ids: Mapping[str, int], model_config: Mapping[str, Any]
) -> dict[str, object]:
    """The ids of tokens with a role, and whether BOS and EOS are added to a text.

    `ids` maps the vocabulary's texts to ids, `model_config` is config.json. The text in the
    tokenizer's configuration counts first, then the number in the model's.
    """
    generation = optional_json(files.folder / "generation_config.json")
    keys: dict[str, object] = {}
    for role, name in ROLES.items():
        text = _text_of(files.config.get(f"{role}_token"))
        numbers = [source.get(f"{role}_token_id") for source in (model_config, generation)]
        candidates = [ids.get(text), *(_id_in(number, len(ids)) for number in numbers)]
        token_id = next((each for each in candidates if each is not None), None)
        if token_id is not None:
            keys[f"tokenizer.ggml.{name}_token_id"] = token_id
    for role in _EDGES:
        added_id = keys.get(f"tokenizer.ggml.{role}_token_id")
        adds = added_id is not None and _is_added(files, role, added_id, ids)
        keys[f"tokenizer.ggml.add_{role}_token"] = adds
    return keys


def _is_added(files: TokenizerFiles, role: str, token_id: object, ids: Mapping[str, int]) -> bool:
    """Whether the token of this role is put before or after every text."""
    declared = files.config.get(f"add_{role}_token")
    if isinstance(declared, bool):
        return declared
    if files.json is None:
        return role == "bos"  # what transformers assumes for SentencePiece
    return ids.get(_template_edge(files.json, _EDGES[role])) == token_id


def _template_edge(tokenizer: TokenizerJson, edge: int) -> str:
    """The special token at this end of what the post-processor makes of a text, or ""."""
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

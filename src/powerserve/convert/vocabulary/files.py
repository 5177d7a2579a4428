"""The tokenizer files of a Hugging Face checkpoint, read and checked as far as their shape goes.

`tokenizer.json` is the format of the `tokenizers` library, `tokenizer.model` SentencePiece's own;
`tokenizer_config.json` holds what only `transformers` needs: roles of tokens and chat templates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from powerserve.core.errors import ConfigError
from powerserve.storage.json_file import read_json

TOKENIZER_FILE = "tokenizer.json"
SENTENCE_PIECE_FILE = "tokenizer.model"

Component = Mapping[str, Any]
"""A normalizer, pre-tokenizer, decoder or post-processor: its `type`, and more by type."""


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is matched as a whole, before the text around it is tokenized."""

    id: int
    content: str
    special: bool = False


@dataclass(frozen=True, slots=True)
class TokenizerModel:
    """The section `model` of tokenizer.json."""

    type: str = "BPE"  # old files do not say so
    vocab: dict[str, int] | list[Any] = field(default_factory=dict)
    merges: list[str | list[str]] = field(default_factory=list)
    ignore_merges: bool = False
    unk_token: str | None = None

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The merges in order of rank; raises ConfigError if one is not a pair."""
        pairs = [item.split(" ") if isinstance(item, str) else item for item in self.merges]
        for pair in pairs:
            if len(pair) != 2:
                raise ConfigError(f"{TOKENIZER_FILE}: the merge {pair!r} is not a pair of tokens")
        return [(left, right) for left, right in pairs]


@dataclass(frozen=True, slots=True)
class TokenizerJson:
    """tokenizer.json, as far as conversion needs it."""

    model: TokenizerModel
    added_tokens: list[AddedToken] = field(default_factory=list)
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None

    @property
    def is_byte_level(self) -> bool:
        """Whether bytes are spelled with printable characters before merging, as GPT-2 does."""
        steps = components(self.pre_tokenizer, "pretokenizers")
        return any(step.get("type") == "ByteLevel" for step in steps)


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What a checkpoint's folder says about its tokenizer; None where a file is missing."""

    folder: Path
    json: TokenizerJson | None
    sentence_piece: bytes | None
    config: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> TokenizerFiles:
        """Read the files; raises ConfigError if one is not what it should be, OSError."""
        tokenizer, pieces = folder / TOKENIZER_FILE, folder / SENTENCE_PIECE_FILE
        return cls(
            folder,
            read_json(tokenizer, TokenizerJson) if tokenizer.is_file() else None,
            pieces.read_bytes() if pieces.is_file() else None,
            optional_json(folder / "tokenizer_config.json"),
        )

    def added_tokens(self) -> list[AddedToken]:
        """The added tokens, from whichever file lists them."""
        if self.json is not None:
            return self.json.added_tokens
        if "added_tokens_decoder" in self.config:
            return _from_decoder(self.config["added_tokens_decoder"], self.folder)
        ids = optional_json(self.folder / "added_tokens.json")
        return [AddedToken(token_id, text) for text, token_id in ids.items()]


def components(component: Component | None, key: str) -> Iterator[Component]:
    """A component's parts in order: those of a sequence, which lie under `key`, or itself."""
    if component is None:
        return
    if component.get("type") != "Sequence":
        yield component
        return
    parts = component.get(key)
    if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
        raise ConfigError(f"{TOKENIZER_FILE}: {key} is not a list of objects")
    for part in parts:
        yield from components(part, key)


def optional_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file. Raises ConfigError."""
    return read_json(path, dict[str, Any]) if path.is_file() else {}


def _from_decoder(entries: Any, folder: Path) -> list[AddedToken]:
    try:
        return [
            AddedToken(int(token_id), str(entry["content"]), bool(entry.get("special")))
            for token_id, entry in entries.items()
        ]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ConfigError(
            f"{folder / 'tokenizer_config.json'}: added_tokens_decoder does not map ids to tokens"
        ) from None

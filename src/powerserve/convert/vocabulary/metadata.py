"""The metadata `tokenizer.*` of a checkpoint.

Source of the keys: the GGUF specification, section “Tokenizer”, and what llama.cpp's converter
writes for the same files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from powerserve.convert.vocabulary.byte_pair import byte_pair_metadata, byte_pair_tokens
from powerserve.convert.vocabulary.chat_templates import chat_template_metadata
from powerserve.convert.vocabulary.files import SENTENCE_PIECE_FILE, TOKENIZER_FILE, TokenizerFiles
from powerserve.convert.vocabulary.scored_merges import adds_space_prefix, scored_tokens
from powerserve.convert.vocabulary.sentence_piece import parse_sentence_piece
from powerserve.convert.vocabulary.special_tokens import special_token_metadata
from powerserve.convert.vocabulary.tokens import Token, complete
from powerserve.core.errors import ConfigError
from powerserve.tokenizer.tokenizer import Tokenizer


def tokenizer_metadata(
    folder: Path,
    vocab_size: int,
    model_config: Mapping[str, Any],
    note: Callable[[str], None],
) -> dict[str, object]:
    """The keys `tokenizer.*` for the tokenizer in `folder`, checked by making a tokenizer of them.

    `vocab_size` counts the rows of the embedding table, `model_config` is config.json, `note` tells
    the user what is worth knowing. Raises ConfigError, TokenizerError or UnsupportedModelError for
    files that are missing, wrong or of a kind that GGUF files cannot express, ModelFileError for a
    tokenizer of another model, OSError.
    """
    files = TokenizerFiles.read(folder)
    base, keys = _base(files, note)
    tokens = complete(base, files.added_tokens(), vocab_size, note)
    keys["tokenizer.ggml.tokens"] = [token.text for token in tokens]
    if keys["tokenizer.ggml.model"] == "llama":
        keys["tokenizer.ggml.scores"] = [token.score for token in tokens]
    keys["tokenizer.ggml.token_type"] = [int(token.type) for token in tokens]
    ids = {token.text: index for index, token in enumerate(tokens)}
    keys |= special_token_metadata(files, ids, model_config)
    keys |= chat_template_metadata(files)
    Tokenizer.from_metadata(keys)  # raises where the parts do not fit together
    return keys


def _base(
    files: TokenizerFiles, note: Callable[[str], None]
) -> tuple[dict[int, Token], dict[str, object]]:
    """The tokens without the added ones, and the keys of their kind of tokenizer.

    A byte-level tokenizer.json comes first: beside it, tokenizer.model is often of another format
    (Llama 3). SentencePiece's own file comes before a tokenizer.json that was made from it.
    """
    tokenizer = files.json
    if tokenizer is not None and tokenizer.is_byte_level:
        return byte_pair_tokens(tokenizer), byte_pair_metadata(tokenizer)
    if files.sentence_piece is not None:
        return _from_sentence_piece(files.sentence_piece, note)
    if tokenizer is not None:
        return scored_tokens(tokenizer), _scored_keys(adds_space_prefix(tokenizer))
    raise ConfigError(
        f"{files.folder} has neither {TOKENIZER_FILE} nor {SENTENCE_PIECE_FILE}: "
        "fetch the tokenizer's files too"
    )


def _from_sentence_piece(
    data: bytes, note: Callable[[str], None]
) -> tuple[dict[int, Token], dict[str, object]]:
    model = parse_sentence_piece(data)
    if model.normalises:
        note(
            f"{SENTENCE_PIECE_FILE} normalises unusual characters, which a GGUF file cannot say: "
            "they may be tokenized otherwise"
        )
    return model.tokens, _scored_keys(model.adds_space_prefix)


def _scored_keys(space_prefix: bool) -> dict[str, object]:
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": space_prefix,
    }

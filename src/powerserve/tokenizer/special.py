"""The tokens with a role: beginning and end of text, end of turn, unknown, padding, …"""

from __future__ import annotations

from dataclasses import dataclass

from powerserve.core.errors import TokenizerError
from powerserve.tokenizer.vocabulary import Metadata, TokenType, Vocabulary

# Searched in this order where `tokenizer.ggml.eot_token_id` is absent; the first hit wins.
_END_OF_TURN_TEXTS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
)
_END_OF_MESSAGE_TEXTS = ("<|eom_id|>",)


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids by role, None where the model has no such token, and what `encode` adds."""

    bos: int | None = None
    eos: int | None = None
    eot: int | None = None
    eom: int | None = None
    unk: int | None = None
    sep: int | None = None
    pad: int | None = None
    mask: int | None = None
    fim_prefix: int | None = None
    fim_suffix: int | None = None
    fim_middle: int | None = None
    add_bos: bool = False
    add_eos: bool = False

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end a generation. BOS is one: a model that emits it starts anew."""
        return frozenset(
            token for token in (self.bos, self.eos, self.eot, self.eom) if token is not None
        )


@dataclass(frozen=True, slots=True)
class SpecialDefaults:
    """What a family of tokenizers assumes where the metadata is silent."""

    bos: int | None = None
    eos: int | None = None
    unk: int | None = None
    add_bos: bool = False


def read_special_tokens(
    metadata: Metadata, vocabulary: Vocabulary, defaults: SpecialDefaults
) -> SpecialTokens:
    """Collect the roles from `tokenizer.ggml.*`.

    Raises TokenizerError for ids outside the vocabulary and for a BOS or EOS that shall be added
    but is not defined.
    """

    def role(*names: str, default: int | None = None) -> int | None:
        for name in names:
            found = _token_id(metadata, f"tokenizer.ggml.{name}_token_id", len(vocabulary))
            if found is not None:
                return found
        return default if default is not None and default < len(vocabulary) else None

    bos = role("bos", default=defaults.bos)
    eos = role("eos", default=defaults.eos)
    eot = role("eot")
    eom = role("eom")
    return SpecialTokens(
        bos=bos,
        eos=eos,
        eot=_find(vocabulary, _END_OF_TURN_TEXTS) if eot is None else eot,
        eom=_find(vocabulary, _END_OF_MESSAGE_TEXTS) if eom is None else eom,
        unk=role("unknown", default=defaults.unk),
        sep=role("seperator", "separator"),  # the specification's own spelling comes first
        pad=role("padding"),
        mask=role("mask"),
        fim_prefix=role("fim_pre", "prefix"),
        fim_suffix=role("fim_suf", "suffix"),
        fim_middle=role("fim_mid", "middle"),
        add_bos=_adds(metadata, "bos", bos, defaults.add_bos),
        add_eos=_adds(metadata, "eos", eos, False),
    )


def _token_id(metadata: Metadata, key: str, vocab_size: int) -> int | None:
    value = metadata.get(key)
    if value is None:
        return None
    try:
        token_id = int(value)
    except (TypeError, ValueError):
        raise TokenizerError(f"{key} in the model file is not a token id") from None
    if not 0 <= token_id < vocab_size:
        raise TokenizerError(
            f"{key} in the model file is {token_id}, but there are only {vocab_size} tokens"
        )
    return token_id


def _adds(metadata: Metadata, role: str, token_id: int | None, default: bool) -> bool:
    key = f"tokenizer.ggml.add_{role}_token"
    value = metadata.get(key)
    if value is None:
        return default and token_id is not None
    if value and token_id is None:
        raise TokenizerError(f"{key} is set in the model file, but it names no such token")
    return bool(value)


def _find(vocabulary: Vocabulary, texts: tuple[str, ...]) -> int | None:
    """The first of `texts` that is a control token; failing that, the first that is a token."""
    found = [vocabulary.ids[text] for text in texts if text in vocabulary.ids]
    controls = (token for token in found if vocabulary.type_of(token) == TokenType.CONTROL)
    return next(controls, found[0] if found else None)

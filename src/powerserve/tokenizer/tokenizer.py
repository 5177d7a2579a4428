"""Text to token ids and back, as the model in a GGUF file expects it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cached_property
from typing import Protocol

from powerserve.core.errors import TokenizerError, UnsupportedModelError
from powerserve.tokenizer.added_tokens import AddedTokens
from powerserve.tokenizer.bpe import BytePairEncoder
from powerserve.tokenizer.pretokenizer import pretokenizer_by_name
from powerserve.tokenizer.special import SpecialDefaults, SpecialTokens, read_special_tokens
from powerserve.tokenizer.spm import SentencePieceEncoder
from powerserve.tokenizer.streaming import StreamDecoder
from powerserve.tokenizer.vocabulary import Metadata, TokenType, Vocabulary, string_array


class Encoder(Protocol):
    """The part in which tokenizer families differ: ordinary text, without special tokens."""

    def encode(self, text: str, *, at_start: bool = False) -> list[int]:
        """Return the ids of `text`; `at_start`: it opens the prompt or follows a special token."""
        ...

    def spelled_bytes(self, token_text: str) -> bytes:
        """Return the bytes that a normal token stands for."""
        ...


class Tokenizer:
    """A model's tokenizer, from GGUF metadata alone. Immutable but for memos, so thread-safe."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        special: SpecialTokens,
        encoder: Encoder,
        *,
        adds_space_prefix: bool = False,
    ) -> None:
        """Assemble a tokenizer; use `from_metadata` for that of a file."""
        self.special = special
        self._vocabulary = vocabulary
        self._encoder = encoder
        self._adds_space_prefix = adds_space_prefix
        self._token_bytes: dict[int, bytes] = {}
        self._hidden = self._find_hidden()

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Tokenizer:
        """Build the tokenizer that `tokenizer.ggml.*` describes.

        Raises TokenizerError for a vocabulary that cannot be used and UnsupportedModelError for a
        kind of tokenizer, or a pre-tokenizer, that PowerServe does not know.
        """
        kind = metadata.get("tokenizer.ggml.model")
        if kind == "gpt2":
            return cls._byte_pair(metadata)
        if kind == "llama":
            return cls._sentence_piece(metadata)
        if kind is None:
            raise TokenizerError("the model file has no tokenizer (tokenizer.ggml.model)")
        raise UnsupportedModelError(
            f"the model's tokenizer “{kind}” is not supported; supported are byte-level BPE "
            "(“gpt2”) and SentencePiece BPE (“llama”)"
        )

    @classmethod
    def _byte_pair(cls, metadata: Metadata) -> Tokenizer:
        recipe = pretokenizer_by_name(str(metadata.get("tokenizer.ggml.pre", "")))
        vocabulary = Vocabulary.from_metadata(metadata)
        defaults = SpecialDefaults(add_bos=recipe.add_bos)
        special = read_special_tokens(metadata, vocabulary, defaults)
        merges = string_array(metadata, "tokenizer.ggml.merges")
        return cls(vocabulary, special, BytePairEncoder(vocabulary, merges, recipe))

    @classmethod
    def _sentence_piece(cls, metadata: Metadata) -> Tokenizer:
        vocabulary = Vocabulary.from_metadata(metadata)
        defaults = SpecialDefaults(bos=1, eos=2, unk=0, add_bos=True)
        special = read_special_tokens(metadata, vocabulary, defaults)
        prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
        encoder = SentencePieceEncoder(vocabulary, add_space_prefix=prefix, unknown_id=special.unk)
        return cls(vocabulary, special, encoder, adds_space_prefix=prefix)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self._vocabulary)

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end a generation: EOS, end of turn, end of message, and BOS."""
        return self.special.stop_ids

    @property
    def hidden_ids(self) -> frozenset[int]:
        """The tokens that `decode` leaves out: control tokens and the unknown one."""
        return self._hidden

    @cached_property
    def longest_token(self) -> int:
        """The most characters of a text that one token can stand for."""
        return max(map(len, self._vocabulary.texts))

    @cached_property
    def newline_id(self) -> int | None:
        """The token of a line feed, None if it takes several."""
        byte_token = self._vocabulary.ids.get("<0x0A>")
        if byte_token is not None and self._vocabulary.type_of(byte_token) == TokenType.BYTE:
            return byte_token
        ids = self._encoder.encode("\n")
        return ids[0] if len(ids) == 1 else None

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Return the token ids of `text`.

        `add_special` puts BOS before and EOS after it where the model asks for that.
        `parse_special` turns the spelling of a control token, such as “<|im_end|>”, into that
        token; without it only user-defined tokens are matched. Lone surrogates become U+FFFD.
        """
        ids: list[int] = []
        if add_special and self.special.add_bos and self.special.bos is not None:
            ids.append(self.special.bos)
        ids += self._encode_body(text, parse_special)
        if add_special and self.special.add_eos and self.special.eos is not None:
            ids.append(self.special.eos)
        return ids

    def encode_inner(self, text: str) -> list[int]:
        """Encode text from the middle of a longer one: nothing is put before it or after it.

        Control tokens are not matched; user-defined ones are.
        """
        return self._encode_body(text, parse_special=False, at_start=False)

    def encode_chat(self, prompt: str) -> list[int]:
        """Encode a rendered chat template: BOS exactly once, no EOS.

        Some templates write BOS themselves and some leave it to the tokenizer; a second BOS
        measurably harms most models, so it is added only if the prompt does not begin with it.
        """
        ids = self._encode_body(prompt, parse_special=True)
        bos = self.special.bos
        if self.special.add_bos and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        return ids

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD.

        `special` shows control tokens by their spelling. Where SentencePiece puts a space before
        a text, that space is dropped after a leading BOS; without BOS the ids are taken for the
        continuation of a text, whose first space is real.
        """
        stream = self.stream(special=special)
        return "".join([*map(stream.feed, ids), stream.finish()])

    def stream(self, *, special: bool = False, visible: Collection[int] = ()) -> StreamDecoder:
        """Return a decoder that takes ids one by one and gives the same text as `decode`.

        The control tokens in `visible` are shown even without `special`.
        """
        return StreamDecoder(
            lambda token_id: self.token_bytes(token_id, special=special or token_id in visible),
            space_follows=self.special.bos if self._adds_space_prefix else None,
        )

    def token_id(self, text: str) -> int | None:
        """The id of the token spelled exactly so, None if there is none."""
        return self._vocabulary.ids.get(text)

    def token_ids(self, texts: Iterable[str]) -> frozenset[int]:
        """The tokens spelled exactly so, as far as there are such."""
        found = map(self.token_id, texts)
        return frozenset(token_id for token_id in found if token_id is not None)

    def token_text(self, token_id: int) -> str:
        """The token as the vocabulary spells it; raises TokenizerError for an unknown id."""
        self._check(token_id)
        return self._vocabulary.texts[token_id]

    def token_bytes(self, token_id: int, *, special: bool = False) -> bytes:
        """The bytes of a token in a text; control tokens have none unless `special`.

        Raises TokenizerError for an id outside the vocabulary.
        """
        if token_id in self._hidden and not special:
            return b""
        known = self._token_bytes.get(token_id)
        if known is None:
            self._check(token_id)
            known = self._token_bytes[token_id] = self._spelled_bytes(token_id)
        return known

    @cached_property
    def _control_and_user_tokens(self) -> AddedTokens:
        return AddedTokens({self._vocabulary.texts[i]: i for i in self._hidden | self._user_ids})

    @cached_property
    def _user_tokens(self) -> AddedTokens:
        return AddedTokens({self._vocabulary.texts[i]: i for i in self._user_ids})

    @cached_property
    def _user_ids(self) -> frozenset[int]:
        return frozenset(self._vocabulary.ids_of_type(TokenType.USER_DEFINED)) - self._hidden

    def _encode_body(self, text: str, parse_special: bool, *, at_start: bool = True) -> list[int]:
        added = self._control_and_user_tokens if parse_special else self._user_tokens
        ids: list[int] = []
        for fragment in added.split(_without_surrogates(text)):
            if isinstance(fragment, int):
                ids.append(fragment)
            else:
                ids += self._encoder.encode(fragment, at_start=at_start)
            at_start = isinstance(fragment, int)
        return ids

    def _find_hidden(self) -> frozenset[int]:
        """Tokens that are not text: control and unknown, and those that end a turn.

        The latter are forced, because some files type them as normal or user-defined.
        """
        declared = self._vocabulary.ids_of_type(TokenType.CONTROL, TokenType.UNKNOWN)
        forced = (token for token in (self.special.eot, self.special.eom) if token is not None)
        return frozenset((*declared, *forced))

    def _spelled_bytes(self, token_id: int) -> bytes:
        text = self._vocabulary.texts[token_id]
        kind = self._vocabulary.type_of(token_id)
        if token_id in self._hidden or kind == TokenType.USER_DEFINED:
            return text.encode("utf-8", "replace")
        if kind == TokenType.BYTE:
            return _byte_of(text)
        return self._encoder.spelled_bytes(text) if kind == TokenType.NORMAL else b""

    def _check(self, token_id: int) -> None:
        if not 0 <= token_id < self.vocab_size:
            raise TokenizerError(
                f"there is no token {token_id}; the vocabulary has {self.vocab_size} tokens"
            )


def _byte_of(text: str) -> bytes:
    """The byte of a token spelled “<0x0A>”; raises TokenizerError for any other spelling."""
    try:
        return bytes([int(text.removeprefix("<0x").removesuffix(">"), 16)])
    except ValueError:
        raise TokenizerError(f"the model file's byte token {text!r} names no byte") from None


def _without_surrogates(text: str) -> str:
    """Join surrogate pairs and replace lone ones (JSON can hold them) by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text

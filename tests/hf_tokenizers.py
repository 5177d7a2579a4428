"""Small tokenizers in the files of Hugging Face checkpoints, trained here, with their libraries.

Each function writes the files into a folder and returns what encodes text independently of us.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

REFERENCE = Path(__file__).parent / "reference"
NUM_MERGED = 420  # tokens that training makes, the 256 bytes included
CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"

Encode = Callable[[str], list[int]]

# The patterns as the models' own tokenizer.json files spell them.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace("{1,3}", "")

PRE_TOKENIZERS: dict[str, list[pre_tokenizers.PreTokenizer]] = {
    "llama-bpe": [
        pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "qwen2": [
        pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ],
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)],
}


def texts() -> list[str]:
    """Texts of all kinds: prose, code, several scripts, white space, the golden cases."""
    cases = (REFERENCE / "tokenizers/cases.txt").read_text(encoding="utf-8")
    prose = (REFERENCE / "generation/text.txt").read_text(encoding="utf-8")
    return [*cases.split("\n__ggml_vocab_test__\n"), *prose.split("\n"), prose]


def write_byte_level(folder: Path, kind: str = "qwen2") -> Encode:
    """Byte-level BPE with ChatML's tokens; `kind` is one of PRE_TOKENIZERS.

    Added tokens follow the merged ones: <|endoftext|>, <|im_start|>, <|im_end|> (special) and
    <tool_call> (not special). For "llama-bpe", BOS (<|endoftext|>) comes before every text.
    """
    raw = _trained_byte_level(kind)
    (folder / "tokenizer.json").write_text(raw, encoding="utf-8")
    config: dict[str, Any] = {
        "bos_token": "<|endoftext|>",
        "eos_token": {"content": "<|im_end|>", "special": True},
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = tokenizers.Tokenizer.from_str(raw)
    return lambda text: list(tokenizer.encode(text).ids)


def write_sentence_piece(
    folder: Path, *, as_json: bool = False, byte_fallback: bool = True
) -> Encode:
    """SentencePiece BPE as Llama 2's: tokenizer.model, or only the tokenizer.json made from it."""
    model = _trained_sentence_piece(byte_fallback)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    if as_json:
        (folder / "tokenizer.json").write_text(_llama2_json(pieces), encoding="utf-8")
    else:
        (folder / "tokenizer.model").write_bytes(model)
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return lambda text: [1, *pieces.encode(text)]


def vocab_size(folder: Path) -> int:
    """Tokens of the tokenizer in a folder, added ones included."""
    path = folder / "tokenizer.json"
    if path.is_file():
        data = json.loads(path.read_text(encoding="utf-8"))
        added = (token["id"] for token in data["added_tokens"])
        return 1 + max(*data["model"]["vocab"].values(), *added)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return int(pieces.get_piece_size())


@cache
def _trained_byte_level(kind: str) -> str:
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[kind])
    tokenizer.decoder = decoders.ByteLevel()
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=NUM_MERGED, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False)])
    if kind == "llama-bpe":
        bos = ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))
        template = processors.TemplateProcessing(
            single=f"{bos[0]} $A", pair=f"{bos[0]} $A {bos[0]} $B", special_tokens=[bos]
        )
        tokenizer.post_processor = processors.Sequence(
            [processors.ByteLevel(trim_offsets=False), template]
        )
    return str(tokenizer.to_str())


@cache
def _trained_sentence_piece(byte_fallback: bool) -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in texts() for line in text.split("\n") if line]),
        model_writer=written,
        model_type="bpe",
        vocab_size=700,
        byte_fallback=byte_fallback,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    return written.getvalue()


def _llama2_json(pieces: sentencepiece.SentencePieceProcessor) -> str:
    """tokenizer.json as transformers makes it from a SentencePiece model."""
    size = pieces.get_piece_size()
    ids = {pieces.id_to_piece(index): index for index in range(size)}
    scores = {text: pieces.get_score(index) for text, index in ids.items()}
    ordinary = [text for text, i in ids.items() if not pieces.is_byte(i) and i > 2]
    pairs = [
        (scores[text], ids[text], text[:cut], text[cut:])
        for text in ordinary
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    merges = [(left, right) for _, _, left, right in sorted(pairs, key=lambda p: (-p[0], p[1]))]
    model = models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return str(tokenizer.to_str())

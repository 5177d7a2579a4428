"""The vocabulary of the tiny models: byte-level BPE as in GPT-2, with ChatML's special tokens."""

from __future__ import annotations

from functools import cache

# “Ġ” is the byte-level spelling of a space. Each merge joins two tokens that exist by then.
MERGES = (
    "Ġ t", "h e", "i n", "r e", "o n", "Ġt he", "Ġ a", "e r", "a t", "Ġ s", "e n", "Ġ w", "o r",
    "i s", "Ġ c", "o u", "Ġ f", "a n", "e s", "Ġ o", "in g", "Ġ b", "Ġ p", "e d", "l l", "Ġa n",
    "Ġan d", "Ġ i", "Ġi n", "Ġ m", "he l", "hel l", "hell o", "Ġw or", "l d", "Ġwor ld", "Ġ Ġ",
    "ĠĠ ĠĠ", "1 2", "u s",
)  # fmt: skip
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@cache
def vocabulary() -> tuple[str, ...]:
    """All tokens: the 256 bytes, one per merge, then the special ones; the id is the index."""
    merged = tuple(merge.replace(" ", "") for merge in MERGES)
    return (*byte_tokens(), *merged, *SPECIAL_TOKENS)


def byte_tokens() -> tuple[str, ...]:
    """The printable spelling of each byte 0 … 255, from GPT-2's published encoder.

    Bytes that are printable in Latin-1 stand for themselves; the others are numbered from U+0100.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))

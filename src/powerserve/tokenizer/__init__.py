"""Vocabulary from GGUF metadata: encode, decode, streaming decode and chat templates."""

from powerserve.tokenizer.chat import ChatTemplate
from powerserve.tokenizer.special import SpecialTokens
from powerserve.tokenizer.streaming import StreamDecoder
from powerserve.tokenizer.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "SpecialTokens", "StreamDecoder", "Tokenizer"]

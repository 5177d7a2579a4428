"""From a checkpoint's tokenizer files to GGUF metadata (`tokenizer.*`)."""

from powerserve.convert.vocabulary.metadata import tokenizer_metadata

__all__ = ["tokenizer_metadata"]

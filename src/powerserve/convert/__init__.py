"""Models in and out: checkpoints to GGUF, quantisation, importance matrices."""

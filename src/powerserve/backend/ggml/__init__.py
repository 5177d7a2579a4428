"""The CPU backend, through ggml."""

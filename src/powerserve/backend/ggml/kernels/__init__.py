"""Kernels of our own for ggml graphs; their source is native/kernels."""

"""Backends execute a model's graph: `reference` (numpy, obviously right) and `ggml` (CPU, fast)."""

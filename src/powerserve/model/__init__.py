"""Architectures: one file each, a function from ModelConfig to Graph; `registry` finds them by name."""

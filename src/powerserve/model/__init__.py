"""Architectures: one file each, a function from ModelConfig to Graph; see `registry`."""

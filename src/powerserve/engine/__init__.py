"""The engine: many sequences over one KV cache, step by step."""

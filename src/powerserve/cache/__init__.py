"""KV cells: who owns them, which sequence sees them, and prefixes that can be used again."""

"""The bottom layer: errors, element types, model configuration. Imports nothing of PowerServe."""

"""Files on disk: GGUF models, workspaces, the model store and downloads."""

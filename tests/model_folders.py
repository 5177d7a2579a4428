"""Model folders and workspaces with the right names and hardly any content, for storage tests."""

from __future__ import annotations

import json
from pathlib import Path

EMPTY_GGUF = b"GGUF" + (3).to_bytes(4, "little") + bytes(16)  # version 3, no tensors, no keys


def write_model_folder(folder: Path, model_id: str = "id", weights: bytes = EMPTY_GGUF) -> Path:
    """A complete model folder whose files say nothing; returns `folder`."""
    (folder / "ggml").mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps({"model_id": model_id}))
    (folder / "vocab.gguf").write_bytes(EMPTY_GGUF)
    (folder / "ggml/weights.gguf").write_bytes(weights)
    return folder


def write_workspace_folder(folder: Path, main: str = "main", draft: str = "") -> Path:
    """A workspace whose models are made by `write_model_folder`; returns `folder`."""
    for name in filter(None, (main, draft)):
        write_model_folder(folder / name, model_id=f"id of {name}")
    names = {"model_main": main, "model_draft": draft, "hparams_config": "hparams.json"}
    (folder / "workspace.json").write_text(json.dumps(names))
    (folder / "hparams.json").write_text('{"n_threads": 3}')
    return folder

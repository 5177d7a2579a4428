"""Imports point down the layers of the architecture, and heavy libraries stay out of start-up."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import powerserve

PACKAGE = Path(powerserve.__file__).parent
# Each layer may import the layers before its own, and itself.
LAYERS = (
    ("core",),
    ("storage", "graph"),
    ("tokenizer", "model", "backend"),
    ("cache",),
    ("executor",),
    ("sampler",),
    ("speculative",),
    ("engine",),
    ("llm",),
    ("server", "convert", "deploy", "evaluate"),
    ("cli",),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
SLOW_IMPORTS = (
    *("huggingface_hub", "rich", "jinja2", "onnx", "onnxruntime", "gguf", "ssl", "llguidance"),
)


def test_imports_point_down() -> None:
    upward = [
        f"{path.relative_to(PACKAGE)} imports {imported}"
        for path in PACKAGE.rglob("*.py")
        for imported in imported_parts(path)
        if RANK[imported] > RANK[part_of(path)]
    ]
    assert not upward


def test_every_part_has_a_layer() -> None:
    parts = {part_of(path) for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE}
    assert parts <= RANK.keys()


def test_running_a_local_model_imports_no_slow_library(smollm2: Path) -> None:
    code = (
        "import sys; from powerserve.cli.main import main\n"
        f"status = main(['run', '-m', {str(smollm2)!r}, '-p', 'Hi', '-n', '1', '-q'])\n"
        f"print(*[name for name in {SLOW_IMPORTS} if name in sys.modules], file=sys.stderr)\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.split() == []


def part_of(path: Path) -> str:
    """The package part a file belongs to: its first folder, or its name at the top level."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "cli" if first in ("__init__", "__main__") else first


def imported_parts(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "powerserve" and len(parts) > 1 and parts[1] in RANK:
                yield parts[1]

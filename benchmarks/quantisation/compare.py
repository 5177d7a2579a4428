"""Quantises models here and with llama.cpp, and prints what differs as a markdown table.

    python compare.py MODEL.gguf … --peer FOLDER [--types Q8_0,Q4_K_M] [--imatrix FILE]

FOLDER holds the package llama-cpp-python (its lib/python3.*/site-packages); it runs in processes of
its own. Perplexity is of `text.txt`, windows of 512 tokens: ours of our file, llama.cpp's of its
own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from math import exp
from pathlib import Path

import numpy as np

from powerserve import LLM
from powerserve.backend.ggml.library import GgmlLibrary
from powerserve.backend.ggml.locate import library_folder
from powerserve.backend.ggml.quantisers import Quantisers
from powerserve.convert.imatrix_file import read_imatrix
from powerserve.convert.quantize import plan_quantisation, write_quantised
from powerserve.convert.recipes import find_recipe, recipe_names
from powerserve.engine.loader import LoadOptions
from powerserve.evaluate.perplexity import window_perplexity
from powerserve.evaluate.scoring import StepSettings
from powerserve.evaluate.windows import text_windows
from powerserve.storage.gguf import GGUFFile, TensorInfo

HERE = Path(__file__).parent
WINDOW = 512
ROWS = 1024  # looked at together


@dataclass(frozen=True, slots=True)
class Peer:
    """llama.cpp, driven by peer_llama_cpp.py."""

    folder: Path

    def run(self, *arguments: object) -> str:
        """Its output; leaves with its message if it fails."""
        command = [sys.executable, str(HERE / "peer_llama_cpp.py"), *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(self.folder)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        return done.stdout


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--types", default=",".join(recipe_names()))
    parser.add_argument("--imatrix", type=Path)
    arguments = parser.parse_args()
    for model in arguments.models:
        print(f"\n## {model.stem}\n")
        print("| type | MB | types | blocks | RMS error | llama.cpp | perplexity | llama.cpp |")
        print("|---|---:|---|---|---:|---:|---:|---:|")
        for name in arguments.types.split(","):
            with tempfile.TemporaryDirectory() as folder:
                row = compare(model, name, Peer(arguments.peer), arguments.imatrix, Path(folder))
            print(f"| {name} | {row} |", flush=True)


def compare(model: Path, name: str, peer: Peer, imatrix: Path | None, folder: Path) -> str:
    """A row of the table after the type's name."""
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    quantise(model, ours, name, imatrix)
    peer_arguments: list[object] = [model, theirs, find_recipe(name).file_type]
    if imatrix:
        means = {name: each[0] for name, each in read_imatrix(imatrix).means.items()}
        np.savez(folder / "means.npz", **means)
        peer_arguments.append(folder / "means.npz")
    peer.run("quantize", *peer_arguments)
    with GGUFFile.open(model) as source, GGUFFile.open(ours) as a, GGUFFile.open(theirs) as b:
        types, blocks = equal_parts(a, b)
        errors = [f"{relative_error(source, each):.5f}" for each in (a, b)]
    own, peers = perplexities(ours, theirs, peer, folder)
    size_mb = ours.stat().st_size / 1e6
    return f"{size_mb:.1f} | {types} | {blocks} | {' | '.join(errors)} | {own:.4f} | {peers:.4f}"


def quantise(model: Path, target: Path, name: str, imatrix: Path | None) -> None:
    """As `powerserve quantize --allow-requantize` does."""
    importance = read_imatrix(imatrix) if imatrix else None
    with GGUFFile.open(model) as source:
        recipe = find_recipe(name)
        plan = plan_quantisation(source, recipe, importance=importance, allow_requantize=True)
        write_quantised(plan, target)


def equal_parts(ours: GGUFFile, theirs: GGUFFile) -> tuple[str, str]:
    """Tensors of the same type, and among them blocks (or numbers) of the same bytes."""
    same_type = [
        (tensor, theirs.tensors[name])
        for name, tensor in ours.tensors.items()
        if name in theirs.tensors and theirs.tensors[name].dtype == tensor.dtype
    ]
    num_equal = num_blocks = 0
    for ours_, theirs_ in same_type:
        blocks = [each.data.reshape(-1, each.dtype.block_bytes) for each in (ours_, theirs_)]
        num_equal += int((blocks[0] == blocks[1]).all(axis=1).sum())
        num_blocks += len(blocks[0])
    num_tensors = len(ours.tensors.keys() | theirs.tensors.keys())
    return f"{len(same_type)} of {num_tensors}", f"{100 * num_equal / num_blocks:.3f} %"


def relative_error(source: GGUFFile, quantised: GGUFFile) -> float:
    """RMS of the error of all matrices over the RMS of their numbers."""
    error = total = 0.0
    quantisers = Quantisers(GgmlLibrary(library_folder()))
    for name, tensor in source.tensors.items():
        if len(tensor.shape) < 2:
            continue
        for first in range(0, tensor.shape[0], ROWS):
            before = rows_of(quantisers, tensor, first)
            after = rows_of(quantisers, quantised.tensors[name], first)
            error += float(np.square(after - before, dtype=np.float64).sum())
            total += float(np.square(before, dtype=np.float64).sum())
    return (error / total) ** 0.5


def rows_of(quantisers: Quantisers, tensor: TensorInfo, first: int) -> np.ndarray:
    """A few rows as floats."""
    data = tensor.data.reshape(tensor.shape[0], -1)[first : first + ROWS]
    return quantisers.dequantise(data.reshape(-1), tensor.dtype, tensor.shape[-1])


def perplexities(ours: Path, theirs: Path, peer: Peer, folder: Path) -> tuple[float, float]:
    """(ours, llama.cpp's)"""
    text = (HERE / "text.txt").read_text()
    with LLM(ours, LoadOptions(context_size=WINDOW)) as llm:
        windows = text_windows(llm.loaded.tokenizer, text, WINDOW)
        *_, own = window_perplexity(llm.loaded.model, windows, StepSettings())
    np.save(folder / "tokens.npy", windows.ravel())
    total, count = peer.run("perplexity", theirs, folder / "tokens.npy", WINDOW).split()
    return own.value, exp(float(total) / int(count))


if __name__ == "__main__":
    main()

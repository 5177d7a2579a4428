"""llama.cpp with its own speculation, as Python packages have it, in child processes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from contestants import PLAIN, Contestant, Run, Setting

sys.path.append(str(Path(__file__).parents[1]))  # what benchmarks share
from line_process import LineProcess

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class PeerPackage:
    """A Python package with llama.cpp inside, and the modes its script knows."""

    name: str
    script: str
    modes: tuple[str, ...]
    draft_modes: tuple[str, ...]


PACKAGES = (
    PeerPackage(
        "xllamacpp",
        "peer_xllamacpp.py",
        (PLAIN, "ngram-simple", "ngram-simple:8", "ngram-cache"),
        ("draft", "draft:8"),
    ),
    PeerPackage("llama_cpp", "peer_llama_cpp_python.py", (PLAIN, "lookup", "lookup:3"), ()),
)


@dataclass(frozen=True, slots=True)
class PeerEnvironment:
    """A virtual environment that has one of the packages."""

    python: Path
    package: PeerPackage

    @classmethod
    def find(cls, folder: Path) -> PeerEnvironment:
        """Look what is installed in `folder`; exits with a sentence if it is nothing we know."""
        for package in PACKAGES:
            if any(folder.glob(f"lib/python3*/site-packages/{package.name}")):
                return cls(folder / "bin" / "python", package)
        names = " or ".join(package.name for package in PACKAGES)
        raise SystemExit(f"{folder} is no virtual environment that has {names}")

    def modes(self, with_draft: bool) -> list[str]:
        """What can be compared."""
        return [*self.package.modes, *(self.package.draft_modes if with_draft else ())]


class Peer(Contestant):
    """llama.cpp in one of its modes, greedy: a process that answers a line with a line."""

    def __init__(self, environment: PeerEnvironment, name: str, setting: Setting) -> None:
        self.name = name
        request = {
            "mode": name,
            "model": str(setting.model.weights),
            "draft": str(setting.draft.weights) if setting.draft else "",
            "threads": setting.num_threads,
            "context": setting.load.context_size,
            "kv_type": setting.load.kv_dtype.name,
        }
        script = str(HERE / environment.package.script)
        command = [str(environment.python), script, json.dumps(request)]
        self._process = LineProcess(f"the peer's mode {name}", command)

    def run(self, prompt: Sequence[int], num_tokens: int) -> Run:
        answer = self._process.ask({"prompt": list(prompt), "num_tokens": num_tokens})
        return Run(**{**answer, "token_ids": tuple(answer["token_ids"])})

    def close(self) -> None:
        self._process.close()

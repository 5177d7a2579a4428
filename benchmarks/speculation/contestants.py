"""Who is compared: PowerServe in its modes, and peers, each in a child process of its own."""

from __future__ import annotations

import json
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from powerserve.core.machine import default_threads
from powerserve.engine.loader import LoadOptions
from powerserve.llm import LLM
from powerserve.sampler.params import SamplingParams
from powerserve.speculative.options import SpeculationMode, SpeculationOptions
from powerserve.speculative.tree import FlatTree
from powerserve.storage.resolve import ModelSource

HERE = Path(__file__).parent
PLAIN = "off"


@dataclass(frozen=True, slots=True)
class Run:
    """One answer, and what it took."""

    token_ids: tuple[int, ...]  # empty: the peer does not tell
    num_tokens: int
    decode_s: float  # from the first token to the last
    total_s: float  # from the first step to the last token
    num_steps: int  # after the first token
    num_candidates: int  # that were verified
    num_accepted: int
    num_draft_runs: int = 0
    tree_sizes: tuple[int, ...] = ()  # tokens of each step that verified candidates

    @property
    def decode_rate(self) -> float:
        """Tokens per second after the first one; 0.0 if there is only one."""
        return (self.num_tokens - 1) / self.decode_s if self.num_tokens > 1 else 0.0

    @property
    def total_rate(self) -> float:
        """Tokens per second, the prompt's time included."""
        return self.num_tokens / self.total_s


@dataclass(frozen=True, slots=True)
class Setting:
    """What all contestants run."""

    model: ModelSource
    draft: ModelSource | None
    num_tokens: int
    temperature: float
    load: LoadOptions

    @property
    def num_threads(self) -> int:
        """As PowerServe would choose them, if nobody says."""
        return self.load.num_threads or default_threads()


class Contestant(ABC):
    """A loaded model that decodes in one way."""

    name: str

    @abstractmethod
    def run(self, prompt: Sequence[int], num_tokens: int) -> Run:
        """Continue a prompt, of which nothing is remembered from earlier runs."""

    @abstractmethod
    def close(self) -> None:
        """Release the model."""


@dataclass(frozen=True, slots=True)
class Mode:
    """A way in which PowerServe decodes."""

    speculation: SpeculationMode
    with_draft: bool = False


MODES = {
    PLAIN: Mode(SpeculationMode.OFF),
    "control": Mode(SpeculationMode.OFF),  # the same again: what it differs by is noise
    "auto": Mode(SpeculationMode.AUTO),
    "suffix": Mode(SpeculationMode.SUFFIX),
    "auto+draft": Mode(SpeculationMode.AUTO, with_draft=True),
    "draft": Mode(SpeculationMode.DRAFT, with_draft=True),
    "tree": Mode(SpeculationMode.TREE, with_draft=True),
}


class PowerServe(Contestant):
    """PowerServe in one of its modes, as its Python API offers it."""

    def __init__(self, name: str, setting: Setting) -> None:
        mode = MODES[name]
        self.name = name
        draft = setting.draft if mode.with_draft else None
        source = replace(setting.model, draft=draft, draft_is_optional=False)
        speculation = SpeculationOptions(mode=mode.speculation)
        self.llm = LLM(source, replace(setting.load, speculation=speculation))
        self._params = SamplingParams(temperature=setting.temperature, seed=1)
        self._tree_sizes: list[int] = []
        if self.llm.loaded.engine.speculator is not None:
            self.llm.loaded.engine.speculator.observer = self._observe

    def run(self, prompt: Sequence[int], num_tokens: int) -> Run:
        self.llm.loaded.engine.clear_prefixes()
        self._tree_sizes.clear()
        answer = self.llm.generate(prompt, self._params, max_tokens=num_tokens)
        timings, counters = answer.timings, answer.speculation
        count = len(answer.token_ids)
        return Run(
            token_ids=tuple(answer.token_ids),
            num_tokens=count,
            decode_s=timings.decode_s,
            total_s=timings.prefill_s + timings.decode_s,
            num_steps=count - 1 if counters is None else counters.num_iterations,
            num_candidates=0 if counters is None else counters.num_draft_tokens,
            num_accepted=0 if counters is None else counters.num_accepted_tokens,
            num_draft_runs=0 if counters is None else counters.num_draft_forwards,
            tree_sizes=tuple(self._tree_sizes),
        )

    def close(self) -> None:
        self.llm.close()

    def _observe(self, tree: FlatTree, rows: Sequence[int]) -> None:
        self._tree_sizes.append(len(tree))


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
        if setting.temperature:
            raise SystemExit("peers are compared at --temperature 0 only")
        request = {
            "mode": name,
            "model": str(setting.model.weights),
            "draft": str(setting.draft.weights) if setting.draft else "",
            "threads": setting.num_threads,
            "context": setting.load.context_size,
            "kv_type": setting.load.kv_dtype.name,
        }
        script = str(HERE / environment.package.script)
        self._process = subprocess.Popen(
            [str(environment.python), script, json.dumps(request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for us; the peer ends with its input
        )
        self._read()  # it says so when it is ready

    def run(self, prompt: Sequence[int], num_tokens: int) -> Run:
        assert self._process.stdin is not None
        question = {"prompt": list(prompt), "num_tokens": num_tokens}
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._read())
        return Run(**{**answer, "token_ids": tuple(answer["token_ids"])})

    def close(self) -> None:
        self._process.communicate()  # the end of its input is the end of the process

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the peer's mode {self.name} failed; see its messages above")
        return line

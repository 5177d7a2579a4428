"""What speculation gains: every mode against plain decoding, prompt by prompt, taking turns.

    python compare.py --model MODEL.gguf --draft DRAFT.gguf --peer FOLDER > results.md

See README.md for the columns and the peers.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from contestants import MODES, PLAIN, Contestant, PowerServe, Setting
from peers import Peer, PeerEnvironment
from prompts import Prompt, load_prompts, workloads
from rounds import Record, take_turns, warm_up
from tables import print_curves, print_differences, print_tables
from ties import Difference, find_differences

from powerserve.core.errors import PowerServeError
from powerserve.engine.loader import LoadOptions
from powerserve.evaluate.conditions import describe_kernels, describe_machine
from powerserve.evaluate.tree_search.timing import fastest_steps_ms
from powerserve.llm import LLM, locate_model
from powerserve.speculative.cost_model import SIZES, CostCurve
from powerserve.speculative.options import SpeculationMode, SpeculationOptions
from powerserve.storage.json_file import write_json
from powerserve.storage.resolve import ModelSource

AnyContestant = TypeVar("AnyContestant", bound=Contestant)


@dataclass(slots=True)
class Results:
    """Everything that was measured."""

    curves: dict[str, CostCurve] = field(default_factory=dict)
    records: dict[str, list[Record]] = field(default_factory=dict)  # by PowerServe, peer, …
    differences: list[Difference] = field(default_factory=list)

    def save(self, file: Path | None) -> None:
        """Write all of it but the prompts' tokens to a JSON file, if one is wanted."""
        if file is None:
            return
        content = {
            "curves": {name: asdict(curve) for name, curve in self.curves.items()},
            "runs": {
                group: [_as_json(record) for record in records]
                for group, records in self.records.items()
            },
            "differences": [asdict(difference) for difference in self.differences],
        }
        write_json(file, content)


def main() -> None:
    """Print the results as markdown; progress goes to standard error."""
    arguments = parse_arguments()
    try:
        compare(arguments)
    except PowerServeError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", required=True, help="a GGUF file, or a name")
    parser.add_argument("--draft", help="a draft model of the same family")
    parser.add_argument(
        "--modes", type=_names, help=f"of {', '.join(MODES)}; default: all that can be run"
    )
    parser.add_argument(
        "--prompts", type=_names, default=workloads(), help="workloads, as in editing,chat"
    )
    parser.add_argument("--num-prompts", type=_count, help="of each workload; default: all")
    parser.add_argument("-n", "--num-tokens", type=_count, default=200, help="of an answer")
    parser.add_argument("--rounds", type=_count, default=3)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1, help="of the order of the contestants")
    parser.add_argument("-t", "--threads", type=int, default=0)
    parser.add_argument("-c", "--context", type=int, default=2048)
    parser.add_argument(
        "--peer",
        type=Path,
        action="append",
        default=[],
        help="a virtual environment with xllamacpp or llama-cpp-python; may be repeated",
    )
    parser.add_argument("--peer-modes", type=_names, help="default: all that its script knows")
    parser.add_argument("--json", type=Path, help="write every run to this file")
    arguments = parser.parse_args()
    _check_names(parser, "mode", arguments.modes or (), MODES)
    _check_names(parser, "workload", arguments.prompts, workloads())
    if not arguments.draft and any(MODES[name].with_draft for name in arguments.modes or ()):
        parser.error("a mode with a draft model needs --draft")
    if arguments.peer and arguments.temperature:
        parser.error("peers are compared at --temperature 0 only")
    return arguments


def compare(arguments: argparse.Namespace) -> None:
    """Measure PowerServe, then each peer."""
    peers = [PeerEnvironment.find(folder) for folder in arguments.peer]
    setting = find_setting(arguments)
    results = Results()
    print_conditions(arguments, setting)
    for name, source in (("target", setting.model), ("draft", setting.draft)):
        if source is not None:
            results.curves[name] = measure_curve(source, setting.load)
    print_curves(list(results.curves.items()))
    prompts = compare_modes(arguments, setting, results)
    results.save(arguments.json)
    for environment in peers:
        compare_peer(arguments, setting, environment, prompts, results)
        results.save(arguments.json)


def find_setting(arguments: argparse.Namespace) -> Setting:
    """The models, and how they are loaded."""
    return Setting(
        locate_model(arguments.model),
        locate_model(arguments.draft) if arguments.draft else None,
        arguments.num_tokens,
        arguments.temperature,
        LoadOptions(context_size=arguments.context, num_threads=arguments.threads),
    )


def print_conditions(arguments: argparse.Namespace, setting: Setting) -> None:
    """The machine and what was asked for."""
    machine = describe_machine()
    memory = (machine.memory_bytes or 0) / 2**30
    draft = f", draft {setting.draft.name}" if setting.draft else ""
    print(f"# Speculation: {setting.model.name}{draft}\n")
    print(f"- machine: {machine.cpu}, {machine.num_cpus} CPUs, {memory:.0f} GiB; {machine.system}")
    print(f"- load average before: {machine.load_average:.2f}")
    print(f"- {setting.num_threads} threads, {arguments.rounds} rounds, ", end="")
    print(f"at most {setting.num_tokens} tokens, temperature {setting.temperature:g}")


def measure_curve(source: ModelSource, options: LoadOptions) -> CostCurve:
    """What steps of a model cost here and now."""
    plain = replace(options, speculation=SpeculationOptions(mode=SpeculationMode.OFF))
    with LLM(source, plain) as llm:
        print(f"- {source.name}: {_kernels(llm)}")
        steps_ms = fastest_steps_ms(llm.loaded.model, SIZES, options.kv_dtype)
    return CostCurve(SIZES, tuple(steps_ms[size] / 1000 for size in SIZES), 0.0)


def compare_modes(
    arguments: argparse.Namespace, setting: Setting, results: Results
) -> list[Prompt]:
    """PowerServe in all modes; the prompts in the model's tokens."""
    modes = arguments.modes or [
        name for name, mode in MODES.items() if setting.draft or not mode.with_draft
    ]
    modes = list(dict.fromkeys([PLAIN, *modes]))
    with loaded(PowerServe(name, setting) for name in modes) as contestants:
        llm = contestants[0].llm
        prompts = load_prompts(llm, arguments.prompts, arguments.num_prompts)
        records = measure(arguments, contestants, prompts)
        results.records["PowerServe"] = records
        results.differences = find_differences(llm, records)
    print("\n## PowerServe")
    print_tables(records, results.differences, results.curves["target"])
    print_differences(results.differences)
    return prompts


def compare_peer(
    arguments: argparse.Namespace,
    setting: Setting,
    environment: PeerEnvironment,
    prompts: Sequence[Prompt],
    results: Results,
) -> None:
    """A peer in all its modes, against its own plain decoding."""
    modes = arguments.peer_modes or environment.modes(setting.draft is not None)
    modes = list(dict.fromkeys([PLAIN, *modes]))
    with loaded(Peer(environment, name, setting) for name in modes) as contestants:
        records = measure(arguments, contestants, prompts)
    results.records[environment.package.name] = records
    print(f"\n## llama.cpp in {environment.package.name}")
    print_tables(records)


@contextmanager
def loaded(contestants: Iterable[AnyContestant]) -> Iterator[list[AnyContestant]]:
    """Contestants as they are loaded one after the other; all are closed in the end."""
    with ExitStack() as stack:
        ready = []
        for contestant in contestants:
            stack.callback(contestant.close)
            ready.append(contestant)
        yield ready


def measure(
    arguments: argparse.Namespace, contestants: Sequence[Contestant], prompts: Sequence[Prompt]
) -> list[Record]:
    """All rounds, after one answer for warming up."""
    warm_up(contestants, prompts[0])
    turns = take_turns(
        contestants,
        prompts,
        rounds=arguments.rounds,
        num_tokens=arguments.num_tokens,
        seed=arguments.seed,
    )
    return list(turns)


def _kernels(llm: LLM) -> str:
    kernels = describe_kernels(llm.loaded.backend)
    return f"{kernels.origin} {kernels.backend} {kernels.version}: {' '.join(kernels.features)}"


def _as_json(record: Record) -> dict[str, Any]:
    prompt = record.prompt
    place = {"round": record.round, "workload": prompt.workload, "prompt": prompt.name}
    return {**place, "contestant": record.contestant, **asdict(record.run)}


def _names(text: str) -> list[str]:
    return text.split(",")


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def _check_names(
    parser: argparse.ArgumentParser, kind: str, names: Iterable[str], known: Collection[str]
) -> None:
    for name in names:
        if name not in known:
            parser.error(f"there is no {kind} {name!r}; choose from {', '.join(known)}")


if __name__ == "__main__":
    main()

"""Where a step goes: what matrices, attention and the rest take, and how fast weights are read.

    python operations.py MODEL.gguf … [--kernels native,ggml] [--tokens 1,4,512] > operations.md

Each operation is computed and timed on its own, as `powerserve bench --profile` does (README.md).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from contestants import KERNELS
from flags import count, counts, kernel_choices
from models import Model
from rounds import say

from powerserve.cli.markdown import markdown_table
from powerserve.core.errors import PowerServeError
from powerserve.core.machine import default_threads
from powerserve.engine.loader import LoadOptions, load_engine
from powerserve.evaluate.operation_profile import OperationKind, StepProfile, profile_step
from powerserve.evaluate.scoring import StepSettings
from powerserve.llm import locate_model
from powerserve.speculative.options import SpeculationMode, SpeculationOptions

MATRICES, REST = "matrices", "everything else"
# Operations by what they are there for: ggml's, then our own, which fuse some of them.
PARTS = {
    **dict.fromkeys(("MUL_MAT", "PRODUCT"), MATRICES),
    "PREPARE": "activations, prepared for them",
    **dict.fromkeys(("ROPE", "SET_ROWS", "STORE"), "Q and K rotated, K and V stored"),
    **dict.fromkeys(("FLASH_ATTN_EXT", "ATTENTION"), "attention"),
}
DEPTH = 64


@dataclass(frozen=True, slots=True)
class Breakdown:
    """A step with one choice of kernels."""

    kernels: str
    profile: StepProfile
    matrix_bytes: Mapping[str, int]  # by role

    def size_bytes(self, kind: OperationKind) -> int:
        """Of all the weights that operations of this kind multiply with."""
        return sum(self.matrix_bytes[role] for role in kind.weight.split("+"))

    def seconds(self, part: str) -> float:
        """Of all operations that are there for `part`."""
        return sum(kind.seconds for kind in self.profile.kinds if part_of(kind) == part)


def part_of(kind: OperationKind) -> str:
    """What an operation is there for."""
    return PARTS.get(kind.operation, REST)


def main() -> None:
    """Print tables of every model and size of a step."""
    arguments = parse_arguments()
    try:
        for reference in arguments.models:
            model = Model.read(reference)
            print(f"\n## {model.name}", flush=True)
            breakdowns = [
                breakdown
                for kernels in arguments.kernels
                for breakdown in profile(model, kernels, arguments)
            ]
            for num_tokens in arguments.tokens:
                print_step([each for each in breakdowns if each.profile.num_tokens == num_tokens])
    except PowerServeError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a GGUF file, or a name")
    parser.add_argument("--kernels", type=kernel_choices, default=["native", "ggml"])
    parser.add_argument(
        "--tokens", type=counts, default=(1, 4, 512), help="of the steps; default: 1,4,512"
    )
    parser.add_argument("-r", "--repeats", type=count, default=10)
    parser.add_argument("-t", "--threads", type=count, default=default_threads())
    return parser.parse_args()


def profile(model: Model, kernels: str, arguments: argparse.Namespace) -> Iterator[Breakdown]:
    """Steps of all sizes with one choice of kernels."""
    options = LoadOptions(
        context_size=DEPTH + max(arguments.tokens),
        num_threads=arguments.threads,
        kernels=kernels,
        speculation=SpeculationOptions(mode=SpeculationMode.OFF),
    )
    with closing(load_engine(locate_model(model.path), options)) as loaded:
        for num_tokens in arguments.tokens:
            say(f"{model.name}, {KERNELS[kernels]}: step of {num_tokens}\n")
            measured = profile_step(
                loaded.model,
                num_tokens=num_tokens,
                depth=DEPTH,
                repeats=arguments.repeats,
                settings=StepSettings(),
            )
            yield Breakdown(kernels, measured, model.matrix_bytes_by_role)


def print_step(breakdowns: Sequence[Breakdown]) -> None:
    """The parts side by side, then each choice's matrices."""
    num_tokens = breakdowns[0].profile.num_tokens
    print(f"\n### Step of {num_tokens}, after {DEPTH} tokens\n")
    print(markdown_table(_part_rows(breakdowns)))
    for breakdown in breakdowns:
        print("\n" + markdown_table(_matrix_rows(breakdown)), flush=True)


def _part_rows(breakdowns: Sequence[Breakdown]) -> Iterator[list[str]]:
    yield ["ms", *(KERNELS[each.kernels] for each in breakdowns)]
    kinds = [kind for each in breakdowns for kind in each.profile.kinds]
    for part in dict.fromkeys([*PARTS.values(), *map(part_of, kinds)]):
        yield [part, *(_share(each.seconds(part), each.profile.total_s) for each in breakdowns)]
    yield ["one by one", *(f"{1000 * each.profile.total_s:.2f}" for each in breakdowns)]
    steps = (f"{1000 * each.profile.fastest_step_s:.2f}" for each in breakdowns)
    yield ["the fastest step as it runs", *steps]


def _matrix_rows(breakdown: Breakdown) -> Iterator[list[str]]:
    yield [f"matrices, {KERNELS[breakdown.kernels]}", "count", "MB", "ms", "GB/s"]
    for kind in breakdown.profile.kinds:
        if part_of(kind) == MATRICES:
            size_bytes = breakdown.size_bytes(kind)
            yield [
                kind.weight,
                str(kind.count),
                f"{size_bytes / 1e6:.1f}",
                f"{1000 * kind.seconds:.3f}",
                f"{size_bytes / kind.seconds / 1e9:.1f}",
            ]


def _share(seconds: float, total_s: float) -> str:
    return f"{1000 * seconds:.2f} ({seconds / total_s:.0%})"


if __name__ == "__main__":
    main()

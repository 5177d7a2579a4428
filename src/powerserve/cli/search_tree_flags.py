"""The flags of `powerserve search-tree`, and what they mean."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Collection
from dataclasses import fields, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from powerserve.cli import options

if TYPE_CHECKING:
    from powerserve.evaluate.tree_search.grid import TreeGrid
    from powerserve.evaluate.tree_search.timing import StepTimes
    from powerserve.speculative.options import TreeParams

DEFAULT_FOLDER = Path("tree-search")
DEFAULT_TOKENS = 128

# field of TreeGrid -> flag of `powerserve run`
PARAMETER_FLAGS = {
    "draft_batch_size": "--draft-batch-size",
    "top_k": "--draft-sampler-top-k",
    "temperature": "--draft-sampler-temperature",
    "p_base": "--draft-sampler-p-base",
    "max_fan_out": "--token-tree-max-fan-out",
    "min_prob": "--token-tree-min-prob",
    "early_stop": "--token-tree-early-stop",
}


def add_search_flags(parser: ArgumentParser) -> None:
    """What is searched, where it is kept, and how it is shown."""
    group = parser.add_argument_group("search")
    group.add_argument(
        "--draft-model", default="", metavar="MODEL", help="default: the workspace's draft model"
    )
    group.add_argument(
        *("-f", "--prompt-file"),
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a prompt to answer (repeatable; default: a few about code, chat and summaries)",
    )
    group.add_argument("--chat", action="store_true", help="use the model's chat template")
    group.add_argument(
        *("-n", "--num-tokens"),
        type=options.positive_number,
        default=DEFAULT_TOKENS,
        metavar="N",
        help=f"tokens of each answer at most (default: {DEFAULT_TOKENS})",
    )
    group.add_argument(
        "--limit",
        type=options.positive_number,
        metavar="N",
        help="try N points, those of earlier runs included (default: all)",
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the points' order (default: 0)"
    )
    group.add_argument(
        *("-o", "--output"),
        type=Path,
        default=DEFAULT_FOLDER,
        metavar="DIR",
        help=f"where the search is kept (default: {DEFAULT_FOLDER})",
    )


def add_grid_flags(parser: ArgumentParser) -> None:
    """The values of each parameter, under the names they have for `run`."""
    group = parser.add_argument_group("values to try, as in 10,15,20")
    kinds: dict[str, Callable[[str], Any]] = {
        "draft_batch_size": int,
        "top_k": int,
        "max_fan_out": int,
        "early_stop": _truth,
    }
    for name, flag in PARAMETER_FLAGS.items():
        kind = kinds.get(name, _number)
        group.add_argument(flag, type=_list_of(kind), dest=name, metavar="X,…")


def add_report_flags(parser: ArgumentParser) -> None:
    """How what came out is judged and shown."""
    group = parser.add_argument_group("report")
    group.add_argument(
        "--report", action="store_true", help="only rank what is in the folder (-o) so far"
    )
    group.add_argument("--json", action="store_true", help="print every point as JSON")
    group.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw speed by parameter (.png, .svg, .pdf)"
    )
    group.add_argument(
        "--target-ms",
        type=_target_times,
        metavar="MS",
        help="a target's step of a whole tree takes this long, whatever was measured here; "
        "SIZE=MS,… for several sizes",
    )
    group.add_argument(
        "--draft-ms", type=_milliseconds, metavar="MS", help="a draft's step takes this long"
    )


def grid_from_flags(arguments: Namespace) -> TreeGrid:
    """The original's grid, but for the values that flags replace."""
    from powerserve.evaluate.tree_search.grid import TreeGrid

    given = {name: getattr(arguments, name) for name in PARAMETER_FLAGS}
    return TreeGrid(**{name: values for name, values in given.items() if values is not None})


def times_from_flags(
    arguments: Namespace, measured: StepTimes, sizes: Collection[int]
) -> StepTimes:
    """The measured times, but for those that flags replace; `sizes`: of the trees."""
    times = measured
    if arguments.draft_ms is not None:
        times = replace(times, draft_ms=arguments.draft_ms)
    if isinstance(arguments.target_ms, float):
        times = replace(times, target_ms=dict.fromkeys(sizes, arguments.target_ms))
    elif arguments.target_ms is not None:
        times = replace(times, target_ms=arguments.target_ms)
    return times if times == measured else replace(times, device="as given by flags")


def flags_of(params: TreeParams) -> str:
    """What `powerserve run` has to be told to use these parameters."""
    flags = ["--spec tree"]
    for each in fields(params):
        value = getattr(params, each.name)
        shown = str(value).lower() if isinstance(value, bool) else f"{value:g}"
        flags.append(f"{PARAMETER_FLAGS[each.name]} {shown}")
    return " ".join(flags)


def _list_of(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """argparse type: values between commas."""

    def parse(text: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(each) for each in text.split(","))
        except ValueError:
            raise ArgumentTypeError(f"{text!r} is not a list of values, as in 1,2,3") from None

    return parse


def _number(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(text)
    return value


def _truth(text: str) -> bool:
    known = {"0": False, "false": False, "1": True, "true": True}
    if text.lower() not in known:
        raise ValueError(text)
    return known[text.lower()]


def _milliseconds(text: str) -> float:
    """argparse type: a positive time."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a time in milliseconds")
    return value


def _target_times(text: str) -> float | dict[int, float]:
    """argparse type: one time, or times by tree size as in `8=50.1,12=62.9`."""
    if "=" not in text:
        return _milliseconds(text)
    times: dict[int, float] = {}
    for part in text.split(","):
        size, _, time = part.partition("=")
        times[options.positive_number(size)] = _milliseconds(time)
    return times

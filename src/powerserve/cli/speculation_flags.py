"""Flags about speculation, those of the original among them, and what they mean."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import replace
from typing import TYPE_CHECKING

from powerserve.core.errors import UsageError

if TYPE_CHECKING:
    from powerserve.llm import LLM
    from powerserve.speculative.options import SpeculationOptions
    from powerserve.storage.resolve import ModelSource

MODES = ("auto", "off", "suffix", "draft", "tree")


def add_speculation_flags(parser: ArgumentParser) -> None:
    """Who guesses tokens ahead. The answer is the same with all of them."""
    from powerserve.cli.options import positive_number

    group = parser.add_argument_group("speculation")
    group.add_argument(
        "--spec",
        choices=MODES,
        help="who guesses tokens ahead: repetitions (suffix), a draft model (draft; tree: as the "
        "original did), whoever pays (auto, the default), or nobody (off)",
    )
    group.add_argument(
        "--use-spec", action="store_true", help="the original's flag: the same as --spec tree"
    )
    group.add_argument(
        "--draft-model", default="", metavar="MODEL", help="default: the workspace's draft model"
    )
    group.add_argument(
        "--spec-max",
        type=positive_number,
        metavar="N",
        help="candidates in one step at most (default: 31)",
    )
    group.add_argument(
        "--spec-share",
        action="store_true",
        help="let answers to earlier requests be repeated from too (others may notice the speed)",
    )
    group.add_argument(
        "--spec-debug", action="store_true", help="print each verified token tree to stderr"
    )
    tree = parser.add_argument_group("token tree (--spec tree)")
    for flag, kind, default, text in (
        ("--draft-batch-size", positive_number, 12, "nodes of a tree"),
        ("--draft-sampler-top-k", positive_number, 15, "candidates of a node"),
        ("--draft-sampler-temperature", float, 1.5, "of the draft's distribution"),
        ("--draft-sampler-p-base", float, 0.9, "worse than the best by this: not expanded"),
        ("--token-tree-max-fan-out", positive_number, 3, "children that are expanded"),
        ("--token-tree-min-prob", float, 0.2, "less probable nodes are not expanded"),
        ("--token-tree-early-stop", _truth, True, "leave room for waiting candidates"),
    ):
        shown = f"{text} (default: {default})"
        tree.add_argument(flag, type=kind, default=default, metavar="X", help=shown)


def speculation_options(arguments: Namespace) -> SpeculationOptions:
    """What the flags ask for. Commands without them measure a model: nobody guesses."""
    from powerserve.speculative.options import SpeculationMode, SpeculationOptions, TreeParams

    if "spec" not in arguments:
        return SpeculationOptions(mode=SpeculationMode.OFF)
    mode = arguments.spec or ("tree" if arguments.use_spec else "auto")
    options = SpeculationOptions(
        mode=SpeculationMode(mode),
        share_outputs=arguments.spec_share,
        tree=TreeParams(
            draft_batch_size=arguments.draft_batch_size,
            top_k=arguments.draft_sampler_top_k,
            temperature=arguments.draft_sampler_temperature,
            p_base=arguments.draft_sampler_p_base,
            max_fan_out=arguments.token_tree_max_fan_out,
            min_prob=arguments.token_tree_min_prob,
            early_stop=arguments.token_tree_early_stop,
        ),
    )
    if arguments.spec_max is not None:
        options = replace(options, max_tokens=arguments.spec_max)
    return options


def with_draft(arguments: Namespace, source: ModelSource) -> ModelSource:
    """The model with the draft model that the flags or the workspace name.

    Raises UsageError where a draft model is needed and nobody names one.
    """
    from powerserve.storage.resolve import resolve_workspace
    from powerserve.storage.workspace import Workspace

    needs_draft = speculation_options(arguments).mode.needs_draft
    if arguments.draft_model:
        from powerserve.llm import locate_model

        draft = locate_model(arguments.draft_model, work_folder=arguments.work_folder)
        return replace(source, draft=draft, draft_is_optional=False)
    if needs_draft and source.draft is None and arguments.work_folder is not None:
        workspace = Workspace.open(arguments.work_folder, arguments.workspace_config)
        source = replace(source, draft=resolve_workspace(workspace).draft)
    if needs_draft and source.draft is None:
        raise UsageError(
            f"this needs a draft model, and {source.name} comes without one; "
            "name it with --draft-model"
        )
    return source


def show_trees(arguments: Namespace, llm: LLM) -> None:
    """With --spec-debug, print every tree that is verified from now on."""
    speculator = llm.loaded.engine.speculator
    if arguments.spec_debug and speculator is not None:
        from powerserve.cli.tree_view import TreePrinter

        speculator.observer = TreePrinter(llm.loaded.tokenizer)


def _truth(text: str) -> bool:
    """A flag that takes a value, as CLI11 reads it."""
    known = {"true": True, "1": True, "on": True, "yes": True}
    known |= {"false": False, "0": False, "off": False, "no": False}
    if text.lower() not in known:
        raise ArgumentTypeError(f"{text!r} is neither true nor false")
    return known[text.lower()]

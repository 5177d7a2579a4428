"""Search the parameters of token trees (--spec tree) that are fastest for two models.

  powerserve search-tree -m TARGET --draft-model DRAFT           the original's 1620 points
  powerserve search-tree -m TARGET+DRAFT --limit 100 -f mine.txt --plot speed.png
  powerserve search-tree --report                                rank what is done so far

The target answers each prompt once; the draft then replays how every point would have fared, and
steps are timed on this machine. A search that was stopped goes on with the same command.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from typing import TYPE_CHECKING

from powerserve.cli import options, search_tree_flags
from powerserve.core.errors import UsageError
from powerserve.storage.progress import console_progress

if TYPE_CHECKING:
    from powerserve.evaluate.tree_search.folder import SearchFolder, Subject
    from powerserve.evaluate.tree_search.search import TreeSearch
    from powerserve.storage.resolve import ModelSource


def configure(parser: ArgumentParser) -> None:
    """Declare the flags."""
    options.add_model_flags(parser)
    search_tree_flags.add_search_flags(parser)
    search_tree_flags.add_grid_flags(parser)
    search_tree_flags.add_report_flags(parser)
    options.add_engine_flags(parser)


def execute(arguments: Namespace) -> int:
    """Search, unless only a report is wanted, and print the ranking."""
    from powerserve.evaluate.tree_search.folder import SearchFolder

    if arguments.plot is not None:
        from powerserve.evaluate.plot_file import check_plot

        check_plot(arguments.plot)  # better now than after the search
    folder = SearchFolder(arguments.output)
    if not arguments.report:
        search(arguments, folder)
    report(arguments, folder)
    return 0


def search(arguments: Namespace, folder: SearchFolder) -> None:
    """Try the points that are missing; Ctrl-C keeps those that are done."""
    from powerserve.evaluate.tree_search.search import TreeSearch, check_pair
    from powerserve.llm import DEFAULT_MODEL

    progress = console_progress()
    points = search_tree_flags.grid_from_flags(arguments).points(arguments.seed)[: arguments.limit]
    target = options.find_model(arguments, DEFAULT_MODEL)
    draft = _find_draft(arguments, target)
    check_pair(target, draft)
    search = TreeSearch(folder, _subject(arguments, target, draft), points, progress)
    try:
        _run(arguments, search, target, draft)
    except KeyboardInterrupt:
        progress.note(f"stopped; the same command goes on from what is done in {folder.path}")
        raise


def report(arguments: Namespace, folder: SearchFolder) -> None:
    """Rank what is done, and print or draw it."""
    from powerserve.cli.search_tree_report import ranking_text
    from powerserve.evaluate.tree_search.database import PointDatabase
    from powerserve.evaluate.tree_search.ranking import rank_points

    record = folder.record()
    points = PointDatabase(folder.database, console_progress()).points
    sizes = {params.draft_batch_size for params in points}
    times = search_tree_flags.times_from_flags(arguments, folder.times(), sizes)
    ranking = rank_points(points, times)
    if arguments.json:
        models = {"target": record.subject.target.name, "draft": record.subject.draft.name}
        print(json.dumps(models | ranking.as_json(), indent=2))
    else:
        print(ranking_text(ranking, record.subject))
    if arguments.plot is not None:
        from powerserve.evaluate.tree_search.plot import plot_ranking

        plot_ranking(ranking, arguments.plot)


def _run(arguments: Namespace, search: TreeSearch, target: ModelSource, draft: ModelSource) -> None:
    """One model after the other, so that they need not fit into memory together."""
    from powerserve.cli.interrupt import interruptible
    from powerserve.llm import LLM

    wanted = options.load_options(arguments, target.hparams)
    load_options = replace(wanted, deterministic=True)  # the answers depend on nothing else
    if search.needs_target:
        with LLM(target, load_options) as llm, interruptible(llm.loaded.backend):
            search.ask_target(llm)
    if search.needs_draft:
        with LLM(draft, load_options) as llm, interruptible(llm.loaded.backend):
            search.try_points(llm)


def _find_draft(arguments: Namespace, target: ModelSource) -> ModelSource:
    from powerserve.cli.speculation_flags import with_draft

    draft = with_draft(arguments, target).draft
    if draft is None:
        raise UsageError(
            f"a search needs a draft model, and {target.name} comes without one; "
            "name it with --draft-model or as main+draft"
        )
    return draft


def _subject(arguments: Namespace, target: ModelSource, draft: ModelSource) -> Subject:
    from powerserve.cli.prompt import read_prompt_file
    from powerserve.evaluate.tree_search.folder import ModelIdentity, Subject
    from powerserve.evaluate.tree_search.prompts import bundled_prompts

    texts = [read_prompt_file(path) for path in arguments.prompt_file] or bundled_prompts()
    return Subject(
        target=ModelIdentity.of(target),
        draft=ModelIdentity.of(draft),
        prompts=tuple(texts),
        chat=arguments.chat,
        max_tokens=arguments.num_tokens,
        backend=arguments.backend,
        kv_type=arguments.kv_type,
    )

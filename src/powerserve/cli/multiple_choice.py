"""What tests of multiple choice have in common on the command line."""

from __future__ import annotations

import json
import os
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from powerserve.cli import options
from powerserve.core.errors import UsageError
from powerserve.storage.progress import console_progress

if TYPE_CHECKING:
    from powerserve.evaluate.multiple_choice.chooser import ChooseBy, Chooser
    from powerserve.evaluate.multiple_choice.endpoint import Endpoint
    from powerserve.evaluate.multiple_choice.journal import Circumstances, Journal
    from powerserve.evaluate.multiple_choice.question import ChoiceTest
    from powerserve.evaluate.multiple_choice.run import Skipped
    from powerserve.storage.resolve import ModelSource

KEY_VARIABLE = "POWERSERVE_API_KEY"
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8080
DEFAULT_REPLY_TOKENS = 32


def add_server_flags(parser: ArgumentParser) -> None:
    """Which server answers; without them, the model runs in this process."""
    group = parser.add_argument_group(
        "server", f"ask a server with OpenAI's API; its key, if any, is in {KEY_VARIABLE}"
    )
    group.add_argument("--url", help="of the server, as in http://localhost:8080")
    group.add_argument("--host", help=f"(default: {DEFAULT_HOST})")
    group.add_argument("--port", type=options.positive_number, help=f"(default: {DEFAULT_PORT})")


def add_test_flags(parser: ArgumentParser, *dataset_flags: str) -> None:
    """What is asked, how, and what is done with the answers."""
    group = parser.add_argument_group("test")
    group.add_argument("--dataset", *dataset_flags, type=Path, default=Path(), metavar="DIR")
    group.add_argument(
        "-s",
        "--scale-factor",
        type=options.whole_number,
        default=10,
        metavar="N",
        help="questions of each subject (default: 10; 0: all)",
    )
    group.add_argument("--subjects", type=_names, default=(), metavar="NAME,…", help="only these")
    group.add_argument(
        "--choose-by",
        choices=["logprob", "generation"],
        help="the likeliest letter (default), or the one named in a reply (default with a server)",
    )
    group.add_argument(
        "--max-tokens",
        type=options.positive_number,
        default=DEFAULT_REPLY_TOKENS,
        metavar="N",
        help=f"of a reply (default: {DEFAULT_REPLY_TOKENS})",
    )
    group.add_argument(
        "-o",
        "--output",
        "--output_path",
        type=Path,
        metavar="FILE",
        help="keep answers here, and go on with those that are there "
        "(default: named after test and model, in the current folder)",
    )
    group.add_argument("--json", action="store_true", help="print scores as JSON")
    group.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the scores (.png, .svg, .pdf)"
    )


def run_test(arguments: Namespace, benchmark: str, test: ChoiceTest, *, num_examples: int) -> int:
    """Ask, and print the scores; Ctrl-C keeps the answers that are there."""
    from powerserve.evaluate.multiple_choice.journal import Journal
    from powerserve.evaluate.multiple_choice.run import answer_all

    if arguments.plot is not None:
        from powerserve.evaluate.plot_file import check_plot

        check_plot(arguments.plot)  # better now than after the test
    progress = console_progress()
    answering = _endpoint(arguments) or _source(arguments)
    choose_by = _choose_by(arguments, answering)
    circumstances = _circumstances(arguments, benchmark, choose_by, num_examples, answering)
    journal = Journal(arguments.output or _default_output(circumstances), circumstances)
    try:
        with _chooser(arguments, choose_by, answering) as chooser:
            skipped = answer_all(test, chooser, journal, progress)
    except KeyboardInterrupt:
        progress.note(f"stopped; the same command goes on from what is in {journal.path}")
        raise
    _report(arguments, test, journal, skipped)
    return 0


def _report(arguments: Namespace, test: ChoiceTest, journal: Journal, skipped: Skipped) -> None:
    from powerserve.cli.multiple_choice_report import report_json, report_text
    from powerserve.evaluate.multiple_choice.score import score_answers

    scores = score_answers(test, journal.answers)
    if arguments.json:
        print(json.dumps(report_json(scores, test, skipped), indent=2))
    else:
        print(report_text(scores, test, skipped))
    if arguments.plot is not None and scores.subjects:
        from powerserve.evaluate.multiple_choice.plot import plot_scores

        about = journal.circumstances
        plot_scores(scores, f"{about.benchmark}, {about.model}", arguments.plot)


def _endpoint(arguments: Namespace) -> Endpoint | None:
    """The server that the flags name. Raises UsageError."""
    from powerserve.evaluate.multiple_choice.endpoint import Endpoint

    if arguments.url is None and arguments.host is None and arguments.port is None:
        return None
    if arguments.url is not None and (arguments.host or arguments.port):
        raise UsageError("--url says where the server is, so --host and --port cannot as well")
    host, port = arguments.host or DEFAULT_HOST, arguments.port or DEFAULT_PORT
    url = arguments.url or f"http://{host}:{port}"
    return Endpoint(url, arguments.model, os.environ.get(KEY_VARIABLE, ""))


def _source(arguments: Namespace) -> ModelSource:
    from powerserve.llm import DEFAULT_MODEL

    return options.find_model(arguments, DEFAULT_MODEL)


def _choose_by(arguments: Namespace, answering: Endpoint | ModelSource) -> ChooseBy:
    from powerserve.evaluate.multiple_choice.chooser import ChooseBy
    from powerserve.evaluate.multiple_choice.endpoint import Endpoint

    if arguments.choose_by is not None:
        return ChooseBy(arguments.choose_by)
    return ChooseBy.GENERATION if isinstance(answering, Endpoint) else ChooseBy.LOGPROB


def _circumstances(
    arguments: Namespace,
    benchmark: str,
    choose_by: ChooseBy,
    num_examples: int,
    answering: Endpoint | ModelSource,
) -> Circumstances:
    from powerserve.evaluate.multiple_choice.chooser import ChooseBy
    from powerserve.evaluate.multiple_choice.endpoint import Endpoint
    from powerserve.evaluate.multiple_choice.journal import Circumstances
    from powerserve.evaluate.tree_search.folder import ModelIdentity

    if isinstance(answering, Endpoint):
        model, weights = answering.model, ""
    else:
        model, weights = answering.name, ModelIdentity.of(answering).sha256
    generates = choose_by is ChooseBy.GENERATION
    return Circumstances(
        benchmark,
        model,
        weights,
        choose_by,
        num_examples,
        arguments.max_tokens if generates else 0,
    )


def _default_output(circumstances: Circumstances) -> Path:
    model = re.sub(r"[^\w.+-]+", "-", circumstances.model) or "server"
    return Path(f"{circumstances.benchmark}-{model}-{circumstances.choose_by}.jsonl")


@contextmanager
def _chooser(
    arguments: Namespace, choose_by: ChooseBy, answering: Endpoint | ModelSource
) -> Iterator[Chooser]:
    from powerserve.evaluate.multiple_choice.endpoint import Endpoint, EndpointChooser

    if isinstance(answering, Endpoint):
        yield EndpointChooser(answering, choose_by, arguments.max_tokens)
        return
    from powerserve.cli.interrupt import interruptible
    from powerserve.evaluate.multiple_choice.local import LocalChooser
    from powerserve.llm import LLM

    load_options = options.load_options(arguments, answering.hparams)
    with LLM(answering, load_options) as llm, interruptible(llm.loaded.backend):
        yield LocalChooser(llm, choose_by, arguments.max_tokens)


def _names(text: str) -> tuple[str, ...]:
    """argparse type: `astronomy,anatomy`"""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))

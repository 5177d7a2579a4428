"""Talk to a model, turn by turn; /help in the chat lists what else one can do there.

Answers go to standard output, everything else to standard error. From a pipe, each line is a turn.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from powerserve.cli import options
from powerserve.cli.prompt import add_prompt_flags, prompt_from_flags
from powerserve.cli.speculation_flags import add_speculation_flags, show_trees, with_draft
from powerserve.cli.trace import add_trace_flag, tracer_from_flags
from powerserve.core.errors import PowerServeError

if TYPE_CHECKING:
    from powerserve.cli.chat_session import ChatSession
    from powerserve.cli.turns import ReadLine


def configure(parser: ArgumentParser) -> None:
    """Declare the command's flags: those of `powerserve run`, as far as they make sense here."""
    add_prompt_flags(parser)
    group = parser.add_argument_group("answer")
    group.add_argument(
        "-n",
        "--n-predicts",
        type=options.positive_number,
        metavar="N",
        help="tokens of one answer at most (default: until the model stops)",
    )
    group.add_argument("--system", metavar="TEXT", help="a system message")
    group.add_argument("-q", "--quiet", action="store_true", help="no greeting")
    options.add_model_flags(parser)
    options.add_engine_flags(parser)
    options.add_sampling_flags(parser)
    add_speculation_flags(parser)
    add_trace_flag(parser)


def execute(arguments: Namespace) -> int:
    """Run the command."""
    first = prompt_from_flags(arguments)
    from powerserve.cli.chat_session import ChatSession
    from powerserve.cli.conversation import Conversation
    from powerserve.cli.turns import line_history, line_reader
    from powerserve.llm import DEFAULT_MODEL, LLM

    read_line = line_reader()
    source = with_draft(arguments, options.find_model(arguments, DEFAULT_MODEL))
    params = options.sampling_params(arguments, source.hparams, arguments.n_predicts)
    load_options = options.load_options(arguments, source.hparams)
    with (
        tracer_from_flags(arguments, source.weights) as tracer,
        LLM(source, load_options, tracer=tracer) as llm,
    ):
        show_trees(arguments, llm)
        session = ChatSession(
            llm,
            params,
            Conversation(arguments.system),
            sys.stdout,
            interactive=sys.stdin.isatty(),
        )
        if first is not None:
            session.ask(first)
        if sys.stdin.isatty():
            if not arguments.quiet:
                _greet(session)
            with line_history():
                _talk(session, read_line)
        else:
            while _take_turn(session, read_line):
                pass
    return 0


def _greet(session: ChatSession) -> None:
    name = session.llm.loaded.source.name
    print(
        f"{name}, a context of {session.context_size} tokens; /help explains, Ctrl-D leaves",
        file=sys.stderr,
    )


def _talk(session: ChatSession, read_line: ReadLine) -> None:
    """Turns until the user leaves; errors, and Ctrl-C at the prompt, do not end the chat."""
    was_interrupted = False
    while True:
        try:
            if not _take_turn(session, read_line):
                return
            was_interrupted = False
        except PowerServeError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            print(file=sys.stderr)
            if was_interrupted:
                return
            was_interrupted = True
            print("Ctrl-C again, or Ctrl-D, leaves", file=sys.stderr)


def _take_turn(session: ChatSession, read_line: ReadLine) -> bool:
    """Read one message or command and see to it; False at the end."""
    from powerserve.cli.chat_commands import is_command, run_command
    from powerserve.cli.turns import read_turn

    text = read_turn(read_line)
    if text is None:
        return False
    if is_command(text):
        return run_command(session, text)
    if text.strip():
        session.ask(text)
    return True

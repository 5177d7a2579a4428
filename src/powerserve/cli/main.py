"""The command line: one small module per command, imported only when that command is used.

A command module `powerserve.cli.<name>` has `configure(parser)`, which declares its flags, and
`execute(arguments) -> int`, which does the work and returns the exit status.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from powerserve import __version__
from powerserve.core.errors import PowerServeError, UsageError

COMMANDS = {
    "run": "answer one prompt",
    "chat": "talk to a model, turn by turn",
    "serve": "answer over HTTP, as OpenAI's API does",
    "bench": "measure prefill and decode speed",
    "bench-server": "measure a server under load, as its clients see it",
    "perplexity": "measure how well a model predicts a text",
    "mmlu": "measure what a model knows, by multiple choice",
    "mmmu": "the same with images, where the server takes them",
    "search-tree": "find the fastest parameters of token trees",
    "quantize": "rewrite a model in a smaller type",
    "imatrix": "measure which weights matter, for quantize",
    "pull": "download a model into the store",
    "list": "list the models in the store",
    "show": "describe a model",
    "rm": "remove a model from the store",
    "create": "make a workspace folder from model folders",
    "convert": "convert a Hugging Face checkpoint to GGUF",
    "export": "make a model folder from a Hugging Face checkpoint",
    "qnn": "models on Qualcomm's NPU",
    "extract-embeddings": "write only a checkpoint's token embeddings",
    "config-generator": "write model.json from a GGUF file",
    "cos-sim": "compare two lists of numbers",
    "deploy": "run on a phone that is attached",
    "doctor": "say what is in use on this machine and what would help",
    "build-native": "build ggml and our own kernels for this machine",
}

INTERRUPTED = 130  # the shell's status for a program ended by Ctrl-C


class CommandParser(argparse.ArgumentParser):
    """A parser whose complaint is one line, like that of every other mistake."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit."""
        advice = f"`{self.prog} --help` explains what there is"
        self.exit(UsageError.exit_code, f"{self.prog}: error: {message}; {advice}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """`powerserve COMMAND …`; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS:
        command, *rest = arguments
        return run_command(command, rest, prog=f"powerserve {command}")
    parser = _parser()
    asked_for = parser.parse_args(arguments).command  # --help and --version end here
    if asked_for is not None:
        parser.error(f"there is no command {asked_for!r}")
    parser.print_help()
    return 0


def run_command(command: str, argv: Sequence[str] | None = None, *, prog: str) -> int:
    """Parse `argv` for one command and execute it; expected errors become one line and status 2."""
    _tolerate_unprintable()
    try:
        module = import_module(f"powerserve.cli.{command.replace('-', '_')}")
        parser = CommandParser(
            prog=prog,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # a script must not break when a flag is added
        )
        module.configure(parser)
        status: int = module.execute(parser.parse_args(argv))
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except PowerServeError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader (`| head`) has left: not an error
        _discard_output()
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _discard_output()  # what is buffered would fail again at exit
        print(f"{prog}: error: the output cannot be written: {error.strerror}", file=sys.stderr)
        return UsageError.exit_code


def run_main() -> int:
    """The original's `powerserve-run`."""
    return run_command("original-run", prog="powerserve-run")


def server_main() -> int:
    """The original's `powerserve-server`."""
    return run_command("serve", prog="powerserve-server")


def perplexity_main() -> int:
    """The original's `powerserve-perplexity-test`."""
    return run_command("perplexity", prog="powerserve-perplexity-test")


def config_generator_main() -> int:
    """The original's `powerserve-config-generator`."""
    return run_command("config-generator", prog="powerserve-config-generator")


def _tolerate_unprintable() -> None:
    """Print "?" for what the terminal's encoding lacks, instead of failing in mid-answer."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _discard_output() -> None:
    """Let nothing fail that is still written to standard output, at exit for instance."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS)) + 2
    listing = "\n".join(f"  {name:{width}}{summary}" for name, summary in COMMANDS.items())
    parser = CommandParser(
        prog="powerserve",
        description="Serve language models on the machine in front of you.",
        epilog=f"commands:\n{listing}\n\n`powerserve COMMAND --help` explains one command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"powerserve {__version__}")
    parser.add_argument("command", nargs="?", metavar="COMMAND")
    return parser

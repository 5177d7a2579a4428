"""The command line: one small module per command, imported only when that command is used.

A command module `powerserve.cli.<name>` has `configure(parser)`, which declares its flags, and
`execute(arguments) -> int`, which does the work and returns the exit status.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from powerserve import __version__
from powerserve.core.errors import PowerServeError

COMMANDS = {
    "run": "answer one prompt",
    "chat": "talk to a model, turn by turn",
    "bench": "measure prefill and decode speed",
    "perplexity": "measure how well a model predicts a text",
    "pull": "download a model into the store",
    "list": "list the models in the store",
    "show": "describe a model",
    "rm": "remove a model from the store",
    "create": "make a workspace folder from model folders",
    "config-generator": "write model.json from a GGUF file",
    "doctor": "say what is in use on this machine and what would help",
    "build-native": "build ggml for this machine",
}

INTERRUPTED = 130  # the shell's status for a program ended by Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """`powerserve COMMAND …`; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    command = next((word for word in arguments if not word.startswith("-")), None)
    if arguments and arguments[0] == command and command in COMMANDS:
        return run_command(command, arguments[1:], prog=f"powerserve {command}")
    parser.parse_args(arguments)  # handles --help, --version and unknown commands
    parser.print_help()
    return 0


def run_command(command: str, argv: Sequence[str] | None = None, *, prog: str) -> int:
    """Parse `argv` for one command and execute it; expected errors become one line and status 2."""
    module = import_module(f"powerserve.cli.{command.replace('-', '_')}")
    parser = argparse.ArgumentParser(
        prog=prog,
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.configure(parser)
    arguments = parser.parse_args(argv)
    try:
        status: int = module.execute(arguments)
        sys.stdout.flush()
        return status
    except PowerServeError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader (`| head`) has left: not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run_main() -> int:
    """The original's `powerserve-run`."""
    return run_command("original-run", prog="powerserve-run")


def perplexity_main() -> int:
    """The original's `powerserve-perplexity-test`."""
    return run_command("perplexity", prog="powerserve-perplexity-test")


def config_generator_main() -> int:
    """The original's `powerserve-config-generator`."""
    return run_command("config-generator", prog="powerserve-config-generator")


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS)) + 2
    listing = "\n".join(f"  {name:{width}}{summary}" for name, summary in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="powerserve",
        description="Serve language models on the machine in front of you.",
        epilog=f"commands:\n{listing}\n\n`powerserve COMMAND --help` explains one command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"powerserve {__version__}")
    parser.add_argument("command", nargs="?", choices=list(COMMANDS), metavar="COMMAND")
    return parser

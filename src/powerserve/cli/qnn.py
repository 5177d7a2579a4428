"""Models on Qualcomm's NPU.

`powerserve qnn COMMAND --help` explains one command.
"""

from __future__ import annotations

from powerserve.cli.command_group import CommandGroup

_COMMANDS = CommandGroup(
    "qnn",
    {
        "convert": "make the NPU's files of a model",
        "stat": "find heads and neurons that should stay in floating point",
        "inspect": "describe a context binary",
        "build-helper": "compile the program in which Qualcomm's libraries live",
        "simple-test": "compile small random graphs, run them and time them",
    },
)

configure = _COMMANDS.configure
execute = _COMMANDS.execute

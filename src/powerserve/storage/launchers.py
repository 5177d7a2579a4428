"""The scripts in a workspace's `bin/` that stand for the original's executables."""

from __future__ import annotations

import shlex

_SCRIPT = """\
#!/bin/sh
# Made by `powerserve create`: runs the PowerServe that made this workspace, else the one on PATH.
python={python}
if [ -x "$python" ]; then
    exec "$python" -P -c {code} "$@"
fi
if [ -n "${{POWERSERVE_LAUNCHER-}}" ]; then
    # This folder is on PATH, and the program found there was this script again.
    echo "{program}: there is no $python; install powerserve or make the workspace again" >&2
    exit 127
fi
POWERSERVE_LAUNCHER=1
export POWERSERVE_LAUNCHER
exec {program} "$@"
"""


def launcher(program: str, function: str, python: str) -> str:
    """A POSIX sh script that calls `function` ("package.module:name") with the given interpreter.

    The function takes no arguments, reads `sys.argv` and returns the exit status. Should the
    interpreter be gone, the script runs `program` from PATH.
    """
    module, name = function.split(":")
    # -P: the folder the user happens to be in must not shadow Python's own modules.
    code = f"import sys; from {module} import {name}; sys.exit({name}())"
    return _SCRIPT.format(program=program, python=shlex.quote(python), code=shlex.quote(code))

"""A bundle that holds no program but a script, which runs this machine's Python."""

from __future__ import annotations

import io
import shlex
import sys
import tarfile
from pathlib import Path

import powerserve
from powerserve.backend.qnn.runtime.build import EXECUTABLE

SCRIPT = """#!/system/bin/sh
PATH=/usr/bin:/bin
PYTHONPATH={source}
export PATH PYTHONPATH
exec {python} -m powerserve "$@"
"""


def write_bundle(path: Path, script: str | None = None, *, helper: bool = False) -> Path:
    """Write an archive whose `bin/powerserve` is `script`, by default this PowerServe.

    It can hold a file in the place of the NPU helper.
    """
    source, python = Path(powerserve.__file__).parents[1], sys.executable
    if script is None:
        script = SCRIPT.format(source=shlex.quote(str(source)), python=shlex.quote(python))
    files = {"bin/powerserve": script.encode()} | ({f"npu/{EXECUTABLE}": b""} if helper else {})
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path

"""A bundle that holds no program but a script, which runs this machine's Python."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import powerserve

SCRIPT = """#!/system/bin/sh
PATH=/usr/bin:/bin
PYTHONPATH={source}
export PATH PYTHONPATH
exec {python} -m powerserve "$@"
"""


def write_bundle(path: Path, script: str | None = None, *, padding: bytes = b"") -> Path:
    """Write an archive whose `bin/powerserve` is `script`, by default this PowerServe."""
    source = Path(powerserve.__file__).parents[1]
    text = SCRIPT.format(source=source, python=sys.executable) if script is None else script
    with tarfile.open(path, "w:gz") as archive:
        for name, content in (("bin/powerserve", text.encode()), ("lib/padding", padding)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path

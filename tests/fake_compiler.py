"""C++ compilers that do what a test wants."""

from __future__ import annotations

import stat
from pathlib import Path


def fake_compiler(path: Path, command: str, version: str = "1.0") -> Path:
    """A compiler that runs `command`, with the file to write in `$out`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --version ] && echo {version} && exit\n'
        'while [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; shift; done\n'
        f"{command}\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path

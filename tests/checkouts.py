"""Small stand-ins for the launcher's tests: a checkout of a stub package, Pythons, and uv."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TOOLS = ("sh", "cksum", "readlink", "dirname", "uname", "sleep", "touch", "ln", "mkdir", "chmod")

PYPROJECT = """
[build-system]
requires = []  # so that the installation asks no package index
build-backend = "stub_backend"
backend-path = ["."]
[project]
name = "powerserve"
version = "1.0"
"""

# A PEP 660 build backend for one module with one command.
BACKEND = """
import pathlib, zipfile

RECORD = "powerserve-1.0.dist-info"
FILES = {
    "powerserve.pth": str(pathlib.Path(__file__).parent),
    RECORD + "/METADATA": "Metadata-Version: 2.1\\nName: powerserve\\nVersion: 1.0\\n",
    RECORD + "/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    RECORD + "/entry_points.txt": "[console_scripts]\\npowerserve = stub:main\\n",
    RECORD + "/RECORD": "",
}

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "powerserve-1.0-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(folder, name), "w") as wheel:
        for path, text in FILES.items():
            wheel.writestr(path, text)
    return name
"""

PROGRAM = """
import sys

def main():
    print(sys.argv[1:], sys.stdin.read())
"""

# Makes an environment of links whose `powerserve` prints its arguments; appends its own arguments
# to the file calls, and waits in the installation while the file hold exists.
UV = """
echo "$1" >> "{folder}/calls"
for last; do :; done
case $1 in
    venv) mkdir -p "$last/bin" && ln -s "{python}" "$last/bin/python" ;;
    pip)
        touch "{folder}/installing"
        while [ -e "{folder}/hold" ]; do sleep 0.1; done
        [ -e "{folder}/fail" ] && echo "no network" && exit 1
        printf '#!/bin/sh\\necho "ran $*"\\n' > .venv/bin/powerserve
        chmod +x .venv/bin/powerserve ;;
    python) exit 1 ;;
esac
"""


@dataclass
class Checkout:
    """A checkout with its own PATH, which holds nothing but `TOOLS` and what a test adds."""

    root: Path
    tools: Path
    environment: dict[str, str] = field(default_factory=dict)

    def add_tool(self, name: str, script: str) -> None:
        """Put a shell script called `name` on PATH."""
        path = self.tools / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def add_python(self, name: str = "python3", without: tuple[str, ...] = ()) -> None:
        """Put this Python on PATH as `name`, as if the modules `without` were not installed."""
        blocker = self.tools / f"{name}-blocker"
        blocker.mkdir()
        (blocker / "sitecustomize.py").write_text(
            "import importlib.util as u\nfind = u.find_spec\n"
            f"u.find_spec = lambda name, *a: None if name in {without!r} else find(name, *a)\n"
        )
        self.add_tool(name, f'PYTHONPATH="{blocker}" exec "{sys.executable}" "$@"')

    def add_uv(self) -> None:
        """Put a uv on PATH that takes no time."""
        self.add_tool("uv", UV.format(folder=self.tools, python=sys.executable))

    def calls(self) -> list[str]:
        """What uv was asked for, in order."""
        log = self.tools / "calls"
        return log.read_text().split() if log.exists() else []

    def start(self, *arguments: str, launcher: Path | None = None) -> subprocess.Popen[str]:
        """Start the launcher in a process group of its own."""
        return subprocess.Popen(
            [launcher or self.root / "powerserve", *arguments],
            cwd=self.tools,
            env={"PATH": str(self.tools), **self.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, launcher: Path | None = None, typed: str = "") -> Outcome:
        """Run the launcher to its end with `typed` on its standard input."""
        with self.start(*arguments, launcher=launcher) as process:
            output, errors = process.communicate(typed, timeout=60)
        return Outcome(process.returncode, output, errors)


@dataclass(frozen=True)
class Outcome:
    """How a launcher ended."""

    status: int
    output: str
    errors: str


def make_checkout(folder: Path) -> Checkout:
    """A checkout in `folder`, without any Python on its PATH."""
    root, tools = folder / "the checkout", folder / "tools"
    tools.mkdir(parents=True)
    for name in TOOLS:
        path = shutil.which(name)
        assert path is not None, f"these tests need {name}"
        (tools / name).symlink_to(path)
    (root / "scripts").mkdir(parents=True)
    for file in ("powerserve", "scripts/bootstrap", "scripts/set_up.py"):
        shutil.copy(REPOSITORY / file, root / file)
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "stub_backend.py").write_text(BACKEND)
    (root / "stub.py").write_text(PROGRAM)
    return Checkout(root, tools, {"HOME": os.environ.get("HOME", str(folder))})

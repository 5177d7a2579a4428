"""The phone's file system: the host's, with Android's folders, shell and tools in front."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

TOOLS = ("gzip",)  # which toybox on Android has and Debian's has not
GETPROP = """#!/system/bin/sh
while read -r line; do
    case "$line" in "$1="*) echo "${line#*=}" ;; esac
done < /system/build.prop
"""


def build_root(
    root: Path, data: Path | None, disk_mib: int | None, properties: dict[str, str]
) -> None:
    """Mount it all at `root`, in a mount namespace of our own.

    `data` becomes the phone's /data; None: a disk of `disk_mib` that is lost with the namespace.
    """
    _mount("-t", "tmpfs", "tmpfs", root)
    for entry in Path("/").iterdir():
        place = root / entry.name
        if entry.is_symlink():
            place.symlink_to(entry.readlink())
        elif entry.is_dir() and entry.name not in ("data", "system"):
            place.mkdir()
            _mount("--rbind", entry, place)
    (root / "data").mkdir()
    if data is None:
        _mount("-t", "tmpfs", "-o", f"size={disk_mib}m", "tmpfs", root / "data")
    else:
        _mount("--bind", data, root / "data")
    (root / "data/local/tmp").mkdir(parents=True, exist_ok=True)
    _add_system(root / "system", properties)


def shell_in(root: Path) -> list[str]:
    """The command that gives a command line to the phone's shell."""
    return ["/usr/sbin/chroot", str(root), "/system/bin/sh", "-c"]


def _add_system(system: Path, properties: dict[str, str]) -> None:
    programs = system / "bin"
    programs.mkdir(parents=True)
    toybox, shell = shutil.which("toybox"), shutil.which("mksh")
    assert toybox and shell
    for name in subprocess.run([toybox], capture_output=True, text=True).stdout.split():
        (programs / name).symlink_to(toybox)
    for tool in TOOLS:
        (programs / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
    (programs / "sh").symlink_to(shell)
    add_properties(system, properties)


def add_properties(system: Path, properties: dict[str, str]) -> None:
    """Let `getprop` below `system` know these."""
    lines = "".join(f"{key}={value}\n" for key, value in properties.items())
    (system / "build.prop").write_text(lines)
    (system / "bin/getprop").write_text(GETPROP)
    (system / "bin/getprop").chmod(0o755)


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)

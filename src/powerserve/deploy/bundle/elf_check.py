"""Checks on every program and library of a bundle before it is accepted.

A library that is missing, or built for another machine, would otherwise show itself on the device
only, as a one-line complaint of its loader.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from powerserve.core.errors import BundleError
from powerserve.deploy.bundle.elf import ElfFile, is_elf, read_elf


def check_elf_files(
    folder: Path, *, machine: str, system_libraries: Collection[str], min_alignment: int
) -> int:
    """Check all ELF files below `folder`; returns how many there are.

    Each must be for `machine`, find every library it needs in the folder or among
    `system_libraries` (those the device itself has), and be loadable with pages of
    `min_alignment` bytes.

    Raises:
        BundleError: some are not so; the text names them.
    """
    files = elf_files(folder)
    there = {name for path, file in files.items() for name in (path.name, file.soname)}
    problems = [
        f"{path.relative_to(folder)} {problem}"
        for path, file in files.items()
        for problem in _problems(file, machine, {*there, *system_libraries}, min_alignment)
    ]
    if problems:
        raise BundleError(f"the bundle would not run: {'; '.join(problems)}")
    return len(files)


def elf_files(folder: Path) -> dict[Path, ElfFile]:
    """The ELF files below `folder`, sorted by path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path: read_elf(path) for path in paths if is_elf(path)}


def _problems(
    file: ElfFile, machine: str, libraries: Collection[str | None], min_alignment: int
) -> list[str]:
    found = []
    if file.machine != machine:
        found.append(f"is for {file.machine}, not {machine}")
    if missing := [name for name in file.needed if name not in libraries]:
        found.append(f"needs {', '.join(missing)}, which is not there")
    if file.alignment < min_alignment:
        found.append(f"is laid out for pages of {file.alignment} bytes, not {min_alignment}")
    return found

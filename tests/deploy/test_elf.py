"""The reader of ELF files agrees with binutils', and the checks name what is wrong."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.compiled import compile_library
from powerserve.backend.ggml.locate import LIBRARIES, library_file, wheel_folder
from powerserve.core.errors import BundleError
from powerserve.deploy.bundle.elf import ElfFile, is_elf, read_elf
from powerserve.deploy.bundle.elf_check import check_elf_files


@pytest.mark.parametrize("name", LIBRARIES)
def test_it_reads_what_readelf_reads(name: str) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("readelf is missing (apt-get install binutils)")
    folder = wheel_folder()
    assert folder is not None
    path = library_file(folder, name)
    assert path is not None
    file = read_elf(path)
    dynamic, segments = readelf(path, "-d"), readelf(path, "-l")
    assert list(file.needed) == re.findall(r"\(NEEDED\) .*\[(.*)\]", dynamic)
    assert [file.soname] == re.findall(r"\(SONAME\) .*\[(.*)\]", dynamic)
    loads = re.findall(r"^  LOAD .*? (0x[0-9a-f]+)$", segments, re.MULTILINE)
    assert file.alignment == min(int(alignment, 16) for alignment in loads)
    assert file.machine.replace("-", "_") == platform.machine()


def test_a_cross_compiled_library_is_recognised(tmp_path: Path) -> None:
    path = compile_library(tmp_path / "libone.so")
    assert read_elf(path) == ElfFile("aarch64", "libone.so", (), 16384)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "no 64-bit"),
        (b"#!/bin/sh\n", "no 64-bit"),
        (b"\x7fELF\x01\x01" + bytes(60), "no 64-bit"),
        (b"\x7fELF\x02\x02" + bytes(60), "no 64-bit"),
        (b"\x7fELF\x02\x01", "damaged"),
        (b"\x7fELF\x02\x01" + bytes(60), "damaged"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=complaint):
        read_elf(path)


@given(data=st.data())
def test_damage_is_an_error_and_no_crash(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = wheel_folder()
    assert folder is not None
    source = library_file(folder, "ggml")
    assert source is not None
    content = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(6, 600))
        content[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.so"
    path.write_bytes(content[: data.draw(st.integers(64, len(content)))])
    assert is_elf(path)
    try:
        read_elf(path)
    except BundleError as error:
        assert "damaged" in str(error)


def test_each_fault_is_named(tmp_path: Path) -> None:
    library = compile_library(tmp_path / "bundle/lib/libone.so", page_bytes=4096)
    compile_library(tmp_path / "bundle/lib/libtwo.so", needs=library)
    faults = {
        "min_alignment": (16384, "libone.so is laid out for pages of 4096 bytes, not 16384"),
        "machine": ("x86-64", "libone.so is for aarch64, not x86-64"),
    }
    good = {"machine": "aarch64", "system_libraries": (), "min_alignment": 4096}
    assert check_elf_files(tmp_path / "bundle", **good) == 2
    for name, (value, complaint) in faults.items():
        with pytest.raises(BundleError, match=complaint):
            check_elf_files(tmp_path / "bundle", **{**good, name: value})
    library.unlink()
    with pytest.raises(BundleError, match=r"libtwo\.so needs libone\.so, which is not there"):
        check_elf_files(tmp_path / "bundle", **good)
    assert check_elf_files(tmp_path / "bundle", **{**good, "system_libraries": ["libone.so"]}) == 1


def readelf(path: Path, option: str) -> str:
    command = ["readelf", "--wide", option, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout

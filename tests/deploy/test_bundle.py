"""The archive: what it holds, that it is the same each time, and how its building fails."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement

import powerserve
from command_line import PROGRAM, status_of
from deploy.bundles import real_bundle, require_build_tools
from deploy.compiled import compile_library, make_ndk, replace_pip
from powerserve.backend.native_source import native_source
from powerserve.core.errors import BundleError, UsageError
from powerserve.deploy.bundle import build as bundle_build
from powerserve.deploy.bundle import cross_kernels, debian, wheels
from powerserve.deploy.bundle.build import BundleOptions, build_bundle
from powerserve.deploy.bundle.target import DEFAULT_TARGET, TARGETS, find_target
from powerserve.deploy.bundle.toolchain import GCC_PREFIX
from powerserve.storage.progress import SILENT

MAX_BYTES = 30_000_000
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(1800)  # the first use of the bundle compiles ggml three times
NOT_IN_BUNDLES = {"gguf", "huggingface-hub", "libggml-python", "numpy"}  # or not from a wheel


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/powerserve/deploy"


# ---- the archive ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def contents() -> dict[str, tarfile.TarInfo]:
    """The entries of the real bundle."""
    with tarfile.open(real_bundle()) as archive:
        return {entry.name: entry for entry in archive}


def test_it_is_small_enough_to_send() -> None:
    assert real_bundle().stat().st_size <= MAX_BYTES


def test_entries_tell_nothing_of_the_machine_that_built_it(
    contents: dict[str, tarfile.TarInfo],
) -> None:
    assert list(contents) == sorted(contents)
    for entry in contents.values():
        assert (entry.uid, entry.gid, entry.uname, entry.gname, entry.mtime) == (0, 0, "", "", 0)
        assert entry.mode in (0o644, 0o755)
        assert entry.isfile() or entry.isdir()
    with real_bundle().open("rb") as file:
        assert file.read(8)[4:] == bytes(4)  # gzip's own time


def test_the_manifest_lists_every_file_with_its_digest() -> None:
    with tarfile.open(real_bundle()) as archive:
        digests = {}
        for entry in archive:
            if (content := archive.extractfile(entry)) is not None:
                digests[entry.name] = hashlib.sha256(content.read()).hexdigest()
                if entry.name == "manifest.json":
                    manifest = json.loads((archive.extractfile(entry) or content).read())
    digests.pop("manifest.json")
    assert manifest["files"] == digests
    assert manifest["version"] == powerserve.__version__
    assert manifest["target"] == "android-glibc"
    assert any(package.startswith("libc6 2.") for package in manifest["debian_packages"])


def test_it_holds_what_runs_and_nothing_idle(contents: dict[str, tarfile.TarInfo]) -> None:
    for level in ("armv8.0", "armv8.2", "armv8.6"):
        assert f"ggml/{level}/libggml-cpu.so" in contents
    assert "ggml/libpowerserve-kernels.so" in contents
    assert contents["bin/powerserve"].mode == 0o755
    assert "lib/packages/powerserve/cli/run.pyc" in contents
    paths = [PurePosixPath(name) for name in contents]
    assert not [path for path in paths if path.suffix in (".py", ".pyi", ".h", ".a")]
    idle = {"__pycache__", "tests", "pip", "idlelib", "RECORD"}
    assert not [path for path in paths if path.name in idle]


def test_licences_of_all_packages_are_there(contents: dict[str, tarfile.TarInfo]) -> None:
    for package in ("libc6", "python3.13-minimal", "python3-numpy", "libssl3t64"):
        assert f"licences/{package}/copyright" in contents
    folders = {name.split("/")[2] for name in contents if ".dist-info/" in name}
    licences = {
        name.split("/")[2]
        for name in contents
        if re.search(r"\.dist-info/.*licen[cs]e", name, re.I)
    }
    assert len(folders) > 10
    assert folders - licences <= {"numpy-2.2.4.dist-info"}


def test_the_same_inputs_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built twice in different folders, from packages and libraries in the user's cache."""
    cached = real_bundle().parents[2]
    sources, kernels = tmp_path / "powerserve", tmp_path / "kernels"
    shutil.copytree(bundle_build.PACKAGE_FOLDER, sources)  # somebody may be editing them
    shutil.copytree(native_source("kernels") or "", kernels)
    monkeypatch.setattr(bundle_build, "PACKAGE_FOLDER", sources)
    monkeypatch.setattr(cross_kernels, "kernel_source", lambda: kernels)
    digests = []
    for name in ("one", "another one"):
        folder = tmp_path / name / "powerserve/deploy"
        folder.mkdir(parents=True)
        for inputs in ("debian", "ggml", "kernels"):
            (folder / inputs).symlink_to(cached / inputs)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        digests.append(digest_of(build_bundle(DEFAULT_TARGET)))
    assert digests[0] == digests[1]


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_wheels_are_those_that_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", wheels.REQUIREMENTS.read_text(), re.MULTILINE))
    for text in project["dependencies"]:
        requirement = Requirement(text)
        name = requirement.name.replace("_", "-")
        if name not in NOT_IN_BUNDLES:
            assert requirement.specifier.contains(pinned[name]), text


# ---- with an NDK ---------------------------------------------------------------------------------


def test_for_termux_it_uses_the_devices_python(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_build_tools()
    replace_pip(tmp_path, monkeypatch)
    options = BundleOptions(ndk=make_ndk(tmp_path), output=tmp_path / "out.tar.gz")
    assert build_bundle(find_target("android-ndk"), options) == tmp_path / "out.tar.gz"
    device = tmp_path / "device"
    with tarfile.open(tmp_path / "out.tar.gz") as archive:
        archive.extractall(device, filter="data")
    assert (device / "bin/powerserve").read_text().startswith("#!/system/bin/sh\n")
    assert (device / "ggml/armv8.0/libc++_shared.so").exists()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    code = "import os, powerserve; print(powerserve.__file__, os.environ['POWERSERVE_GGML_DIR'])"
    done = subprocess.run(
        ["sh", device / "bin/python3", "-c", code],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    expected = (device / "lib/packages/powerserve/__init__.py", device / "ggml")
    assert done.stdout.split() == [str(each) for each in expected], done.stderr


def test_an_ndk_adds_the_npu_helper(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_build_tools()
    replace_pip(tmp_path, monkeypatch)
    monkeypatch.setattr("powerserve.deploy.bundle.build._add_python", lambda root, progress: [])
    kernels = compile_library(tmp_path / "libpowerserve-kernels.so")
    monkeypatch.setattr(bundle_build, "build_kernels", lambda toolchain, progress: kernels)
    archive = build_bundle(DEFAULT_TARGET, BundleOptions(ndk=make_ndk(tmp_path)))
    with tarfile.open(archive) as file:
        assert file.getmember("npu/powerserve-npu-helper").mode == 0o755
    assert build_bundle(DEFAULT_TARGET).parent != archive.parent


# ---- failures ------------------------------------------------------------------------------------


def test_unknown_targets_are_listed() -> None:
    with pytest.raises(UsageError, match=", ".join(target.name for target in TARGETS)):
        find_target("nokia")


def test_without_a_network_the_reason_is_told(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_build_tools()
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(debian, "_host_settings", lambda: ['Acquire::Retries "0";'])
    with pytest.raises(BundleError, match=r"Debian packages cannot be fetched: .*127\.0\.0\.1"):
        debian.fetch_packages(("zlib1g",), "arm64", SILENT)
    assert not list((own_cache / "debian/trixie/packages").iterdir())


def test_wheels_of_other_content_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = tmp_path / "requirements.txt"
    changed.write_text(f"h11==0.16.0 --hash=sha256:{'0' * 64}\n")
    monkeypatch.setattr(wheels, "REQUIREMENTS", changed)
    with pytest.raises(BundleError, match="cannot be fetched: ERROR"):
        wheels.install_wheels(tmp_path / "packages")


def test_a_damaged_package_is_an_error(tmp_path: Path) -> None:
    require_build_tools()
    path = tmp_path / "zlib1g_1_arm64.deb"
    path.write_bytes(b"!<arch>\n" + bytes(100))
    with pytest.raises(BundleError, match="damaged; `--force` fetches it again"):
        list(debian.files_in(path))


def test_tools_that_are_missing_are_named(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debian, "KEYRING", tmp_path / "none")
    with pytest.raises(BundleError, match="sudo apt-get install -y debian-archive-keyring"):
        debian.fetch_packages(("zlib1g",), "arm64", SILENT)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BundleError, match="there is no apt-get here"):
        debian.fetch_packages(("zlib1g",), "arm64", SILENT)


def test_the_command_explains_itself_and_checks_its_output_first(
    own_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_build_tools()
    assert status_of("deploy", "build", "-o", tmp_path / "no folder/out.tar.gz") == 2
    assert "name a file in a folder that exists" in capsys.readouterr().err
    assert status_of("deploy", "build", "--target", "android-ndk") == 2
    assert capsys.readouterr().err.endswith("name its folder: --ndk DIR\n")
    assert status_of("deploy", "build", "--ndk", tmp_path) == 2
    assert "is no Android NDK" in capsys.readouterr().err
    assert not own_cache.exists()


def test_a_terminated_build_stops_its_compilers_and_leaves_nothing(
    own_cache: Path, tmp_path: Path
) -> None:
    require_build_tools()
    compiler = tmp_path / f"{GCC_PREFIX}g++"
    compiler.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] || touch "{tmp_path}/started"\nsleep 60\n'
    )
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] || { touch "$0.started"; sleep 60; }\n')
    compiler.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen(
        [*PROGRAM, "deploy", "build"], env=os.environ | {"PATH": path}, stderr=subprocess.DEVNULL
    ) as process:
        wait_for(tmp_path / f"{compiler.name}.started", process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    assert not list((own_cache / "ggml").glob(".armv8*"))
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(compiler) not in running


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, "the build ended early"
        assert time.monotonic() < deadline
        time.sleep(0.05)

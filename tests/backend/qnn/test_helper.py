"""The native helper against a stand-in for Qualcomm's libraries, which does what a test wants."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from powerserve.backend.qnn.inspect import BinaryInfo
from powerserve.backend.qnn.libraries import QnnLibraries, find_libraries
from powerserve.backend.qnn.runtime import helper_process, messages
from powerserve.backend.qnn.runtime.base import CompiledGraph
from powerserve.backend.qnn.runtime.build import compile_helper, helper_executable
from powerserve.backend.qnn.runtime.helper import HelperRuntime, refused_because
from powerserve.backend.qnn.runtime.helper_process import helper_environment
from powerserve.backend.qnn.runtime.messages import DeviceInfo
from powerserve.core.errors import BackendError
from stub_qnn_library import BINARY_SOC, REQUEST, build_stub, compiler_or_skip


@pytest.fixture(scope="module")
def executable() -> Path:
    compiler_or_skip()
    return helper_executable()


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory) -> QnnLibraries:
    """Libraries of a phone, whose NPU has memory of its own."""
    folder = tmp_path_factory.mktemp("stub") / "phone"
    return build_stub(folder, compiler_or_skip(), rpc_memory=True)


@pytest.fixture(scope="module")
def board(phone: QnnLibraries) -> QnnLibraries:
    """The same without that memory."""
    folder = phone.folder.with_name("board")
    folder.mkdir()
    for name in ("libQnnHtp.so", "libQnnSystem.so"):
        (folder / name).symlink_to(phone.folder / name)
    return QnnLibraries(folder)


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    path = tmp_path / "any.bin"
    path.write_bytes(b"the stub takes anything")
    return path


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the stub notes what is called."""
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "calls"))
    return tmp_path / "calls"


@contextmanager
def opened(
    executable: Path, libraries: QnnLibraries, time_limit_s: float = 60
) -> Iterator[HelperRuntime]:
    runtime = HelperRuntime(executable, libraries, time_limit_s=time_limit_s)
    try:
        yield runtime
    finally:
        runtime.close()


def check_doubling(graph: CompiledGraph, first: float) -> None:
    """Run it on new numbers; the stub computes y = 2 x."""
    graph.inputs["x"][:] = np.arange(8, dtype=np.float32).reshape(2, 4) + first
    graph.run()
    np.testing.assert_array_equal(graph.outputs["y"], 2 * graph.inputs["x"])


def test_it_works_on_an_arm_processor(tmp_path: Path, binary: Path) -> None:
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64-static")
    if compiler is None or emulator is None:
        pytest.skip(
            "needs aarch64-linux-gnu-g++ and qemu-aarch64-static (Debian: qemu-user-static)"
        )
    compile_helper(compiler, tmp_path / "arm")
    started = tmp_path / "helper"
    started.write_text(
        f'#!/bin/sh\nexec {emulator} -L /usr/aarch64-linux-gnu "${{0%/*}}/arm" "$@"\n'
    )
    started.chmod(0o755)
    libraries = build_stub(tmp_path / "stub", compiler, rpc_memory=True)
    with opened(started, libraries) as runtime:
        check_doubling(*runtime.load(binary, [REQUEST]), 1)


# ---- memory and performance ---------------------------------------------------------------------


def test_the_npus_own_memory_is_zeroed_and_registered_once(
    executable: Path, phone: QnnLibraries, binary: Path, calls: Path
) -> None:
    with opened(executable, phone) as runtime:
        first, second = runtime.load(binary, [REQUEST, REQUEST])
        assert not first.inputs["x"].any() and not first.outputs["y"].any()
        assert first.inputs["x"] is second.inputs["x"]
        check_doubling(first, 1)
        check_doubling(second, 100)
    registered = [line for line in calls.read_text().splitlines() if line.startswith("register")]
    assert registered == ["register rank 2 type 0x232 kind 2: part kind 1 of 64 at 0"] * 3


@pytest.mark.parametrize("failing", ["memRegister", "rpcmem_to_fd"])
def test_memory_that_the_npu_refuses_is_copied(
    executable: Path,
    phone: QnnLibraries,
    binary: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
) -> None:
    monkeypatch.setenv("STUB_FAIL", failing)
    with opened(executable, phone) as runtime:
        check_doubling(*runtime.load(binary, [REQUEST]), 1)


def test_without_such_memory_it_is_copied(
    executable: Path, board: QnnLibraries, binary: Path, calls: Path
) -> None:
    with opened(executable, board) as runtime:
        check_doubling(*runtime.load(binary, [REQUEST]), 1)
    assert "register" not in calls.read_text()


@pytest.mark.parametrize("failing", ["", "contextConfig"])
def test_room_for_tensors_is_asked_for(
    executable: Path,
    board: QnnLibraries,
    binary: Path,
    calls: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
) -> None:
    monkeypatch.setenv("STUB_FAIL", failing)
    with opened(executable, board) as runtime:
        check_doubling(*runtime.load(binary, [REQUEST]), 1)
    assert "context option 0: 6 is 1" in calls.read_text()


def test_clock_rates_are_voted_to_their_highest(
    executable: Path, board: QnnLibraries, calls: Path
) -> None:
    with opened(executable, board) as runtime:
        assert (runtime.device.soc_model, runtime.device.htp_arch) == (57, 75)
        assert runtime.device.refused_votes == ()
    highest = "160 160 160"
    assert calls.read_text().splitlines() == [
        f"vote 5: 1 5 1 0 16 1 40 1 1 1 {highest} 1 {highest}",
        "vote 5: 2 100",
        "vote 5: 3 9999",
        "vote 5: 5 0",
    ]
    HelperRuntime(executable, board, performance=False).close()
    assert len(calls.read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("failing", "refused"),
    [("setPowerConfig", "clock rates"), ("deviceGetInfrastructure", "all votes")],
)
def test_refused_votes_get_a_warning(
    executable: Path,
    board: QnnLibraries,
    binary: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failing: str,
    refused: str,
) -> None:
    monkeypatch.setenv("STUB_FAIL", failing)
    with opened(executable, board) as runtime:
        assert f"slower than it could be: {refused}: STUB_ERROR 1002" in caplog.text
        check_doubling(*runtime.load(binary, [REQUEST]), 1)


# ---- versions and libraries ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("STUB_CORE_MINOR", "20", r"libQnnHtp\.so speaks version 2\.20\.0 .*; 2\.21\.0 or a later"),
        ("STUB_SYSTEM_MAJOR", "2", r"libQnnSystem\.so speaks version 2\.0\.0 .*; 1\.0\.0 or a"),
    ],
)
def test_another_version_of_the_interface_is_not_touched(
    executable: Path,
    board: QnnLibraries,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    sentence: str,
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("STUB_CRASH", "backendCreate")
    with pytest.raises(BackendError, match=f"opening the NPU failed: .*{sentence}"):
        HelperRuntime(executable, board)


def test_a_helper_of_another_version_is_recognised(
    executable: Path, board: QnnLibraries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "PROTOCOL", 99)
    with pytest.raises(BackendError, match="speaks version 1 of the protocol, the client 99"):
        HelperRuntime(executable, board)


def test_libraries_that_are_none(executable: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"lacks libQnnHtp.so or libQnnSystem.so"):
        find_libraries(tmp_path)
    (tmp_path / "libQnnHtp.so").write_text("no library")
    with pytest.raises(BackendError, match=r"opening the NPU failed: .*: file too short"):
        HelperRuntime(executable, QnnLibraries(tmp_path))


def test_the_npus_code_is_found_beside_the_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inherited = {"LD_LIBRARY_PATH": "/bundle", "ADSP_LIBRARY_PATH": "/dsp", "HOME": "/root"}
    assert helper_environment(QnnLibraries(tmp_path), inherited) == {
        "LD_LIBRARY_PATH": f"{tmp_path}:/bundle",
        "ADSP_LIBRARY_PATH": f"{tmp_path};/dsp",
        "HOME": "/root",
    }
    monkeypatch.setattr(helper_process, "on_android", lambda: True)
    on_a_phone = helper_environment(QnnLibraries(tmp_path), inherited)
    assert on_a_phone["LD_LIBRARY_PATH"] == f"{tmp_path}:/system/lib64:/vendor/lib64"


def test_why_a_sound_binary_is_refused() -> None:
    device = DeviceInfo("v2.40.0.1", "2.29.0", "5.40.0", "1.5.0", 57, 75, ())
    older = BinaryInfo("v2.39.9.250101", "2.29.0", "5.39.0", 57, ())
    newer = BinaryInfo("v2.51.0.260101", "2.40.0", "5.51.0", 57, ())
    assert refused_because(older, device, [], emulated=False) is None
    assert "the libraries here are the older v2.40.0.1" in str(refused_because(newer, device, []))
    foreign = BinaryInfo(older.build_id, "2.29.0", "5.39.0", BINARY_SOC, ())
    reason = refused_because(foreign, device, [], emulated=False)
    assert reason is not None
    assert "made for Snapdragon 8 Elite, and this is Snapdragon 8 Gen 3" in reason
    assert refused_because(foreign, device, [], emulated=True) is None


def test_a_program_that_is_none(board: QnnLibraries, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"helper .* does not start: Permission denied"):
        HelperRuntime(tmp_path, board)


# ---- failures and crashes -----------------------------------------------------------------------


def test_an_error_is_quoted_and_survived(
    executable: Path, board: QnnLibraries, binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_FAIL", "graphExecute")
    with opened(executable, board) as runtime:
        (graph,) = runtime.load(binary, [REQUEST])
        for _ in range(2):
            with pytest.raises(BackendError) as caught:
                graph.run()
            assert str(caught.value) == (
                'running double failed: STUB_ERROR 1002; graphExecute has "no" luck'
            )


def test_a_binary_of_a_newer_sdk_says_so(
    executable: Path, board: QnnLibraries, binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_FAIL", "contextCreateFromBinary")
    monkeypatch.setenv("STUB_BUILD", "v2.51.0.1")
    with (
        opened(executable, board) as runtime,
        pytest.raises(BackendError, match=r"QNN v2.51.0.1 made it, .* older v2.40.0.1; update"),
    ):
        runtime.load(binary, [REQUEST])


def test_a_crash_is_one_sentence(
    executable: Path, board: QnnLibraries, binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_CRASH", "graphExecute")
    with opened(executable, board) as runtime:
        (graph,) = runtime.load(binary, [REQUEST])
        for _ in range(2):  # and so it stays
            with pytest.raises(BackendError) as caught:
                graph.run()
            assert str(caught.value) == (
                "the NPU helper crashed (SIGABRT), saying “graphExecute is about to crash”, "
                "while running double"
            )
        assert not graph.inputs["x"].any()  # its memory outlives it


def test_a_killed_helper_is_noticed_in_the_middle_of_a_run(
    executable: Path, board: QnnLibraries, binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_SLEEP_S", "60")
    with opened(executable, board) as runtime:
        (graph,) = runtime.load(binary, [REQUEST])
        (helper,) = children_of(os.getpid(), executable)
        threading.Timer(0.3, os.kill, (helper, signal.SIGKILL)).start()
        with pytest.raises(BackendError, match=r"was killed \(SIGKILL; .*\) while running double"):
            graph.run()


def test_signals_are_for_the_client(executable: Path, board: QnnLibraries, binary: Path) -> None:
    with opened(executable, board) as runtime:
        (graph,) = runtime.load(binary, [REQUEST])
        (helper,) = children_of(os.getpid(), executable)
        for number in (signal.SIGTERM, signal.SIGHUP):
            os.kill(helper, number)
        check_doubling(graph, 1)


def test_a_run_that_takes_too_long_is_stopped(
    executable: Path, board: QnnLibraries, binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_SLEEP_S", "60")
    with opened(executable, board, time_limit_s=1) as runtime:
        (graph,) = runtime.load(binary, [REQUEST])
        with pytest.raises(BackendError, match="running double took more than 1 s and was stopped"):
            graph.run()


CLIENT = """
import os, signal, sys, threading
from pathlib import Path
from stub_qnn_library import REQUEST, QnnLibraries
from powerserve.backend.qnn.runtime.helper import HelperRuntime
executable, libraries, binary = map(Path, sys.argv[1:])
runtime = HelperRuntime(executable, QnnLibraries(libraries))
(graph,) = runtime.load(binary, [REQUEST])
print("loaded", flush=True)
graph.inputs["x"][:] = 7
"""


def test_ctrl_c_leaves_the_helper_usable(
    executable: Path, board: QnnLibraries, binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_SLEEP_S", "1")
    program = CLIENT + (
        "threading.Timer(0.3, os.killpg, (0, signal.SIGINT)).start()\n"
        "try:\n"
        "    graph.run()\n"
        "except KeyboardInterrupt:\n"
        "    graph.inputs['x'][:] = 8\n"
        "    graph.run()\n"
        "    print(graph.outputs['y'].max())\n"
        "runtime.close()"
    )
    with client(program, executable, board, binary) as process:
        assert process.communicate(timeout=60)[0].split() == [b"loaded", b"16.0"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_the_helper_ends_when_its_client_is_killed(
    executable: Path, board: QnnLibraries, binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_SLEEP_S", "60")
    with client(CLIENT + "graph.run()", executable, board, binary) as process:
        assert process.stdout is not None and process.stdout.readline() == b"loaded\n"
        (helper,) = children_of(process.pid, executable)
        process.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{helper}/exe").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def client(
    program: str, executable: Path, libraries: QnnLibraries, binary: Path
) -> subprocess.Popen[bytes]:
    """Run a program that has loaded the stub's graph, as a process group of its own."""
    arguments = [str(executable), str(libraries.folder), str(binary)]
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def children_of(parent: int, executable: Path) -> list[int]:
    """Processes of `parent` that run `executable`."""
    names = Path(f"/proc/{parent}/task").glob("*/children")
    children = [int(child) for name in names for child in name.read_text().split()]
    return [
        child for child in children if Path(f"/proc/{child}/exe").resolve() == executable.resolve()
    ]

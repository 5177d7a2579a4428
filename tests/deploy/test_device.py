"""Commands and files reach a phone as they are, and what goes wrong there is told."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.fake_phone.phone import FakePhone, PhoneSettings, PlugIn
from powerserve.core.errors import DeviceError
from powerserve.deploy import programs
from powerserve.deploy.device import Device
from powerserve.deploy.jobs import Program, job_folder, run_program
from powerserve.deploy.selection import choose_device

HOSTILE = (
    "it's",
    '"$HOME"',
    "`id`",
    "$(id)",
    "a\nb\n",
    "\\",
    "*",
    "~",
    "😀 é",
    "-n",
    "",
    " ",
    "!!",
)
TMP = PurePosixPath("/data/local/tmp")


@pytest.mark.parametrize("shell_v2", [True, False])
def test_statuses_and_both_outputs_come_back(plug_in: PlugIn, shell_v2: bool) -> None:
    plug_in(PhoneSettings(shell_v2=shell_v2))
    device = choose_device()
    reply = device.run_script("echo out; echo err >&2; exit 7")
    assert reply.status == 7
    assert sorted(reply.output.split()) == ["err", "out"]
    assert device.run(["true"]).output == ""


def test_a_status_in_the_output_is_not_mistaken(device: Device) -> None:
    reply = device.run_script("echo powerserve-status 9; exit 4")
    assert (reply.status, reply.output) == (4, "powerserve-status 9\n")


def test_words_arrive_as_they_are(device: Device) -> None:
    reply = device.run(["printf", "%s\\036", *HOSTILE])
    assert reply.output == "".join(f"{word}\036" for word in HOSTILE)


@given(st.lists(st.text(st.characters(exclude_characters="\0\r", codec="utf-8"), max_size=20)))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_words_arrive_as_they_are(device: Device, words: list[str]) -> None:
    expected = "".join(f"{word}\036" for word in [*words, "end"])
    assert device.run(["printf", "%s\\036", *words, "end"]).output == expected


def test_files_are_written_with_folders_and_replaced(
    device: Device, phone: FakePhone, tmp_path: Path
) -> None:
    source = tmp_path / "some file"
    for content in (b"\0\r\n" * 100_000, b"short"):
        source.write_bytes(content)
        device.push(source, TMP / "new folder/it's")
        assert (phone.data / "local/tmp/new folder/it's").read_bytes() == content


def test_properties(device: Device) -> None:
    assert device.property("ro.board.platform") == "zuma"
    assert device.property("no.such.property") == ""
    assert device.name() == "Fake 8"


def test_a_failed_command_is_an_error_with_its_last_line(device: Device) -> None:
    with pytest.raises(DeviceError, match=r"a command on 127.* failed: cat: .*No such file"):
        device.check("echo fine; cat '/no such/file'")
    with pytest.raises(DeviceError, match=r"failed: it gave no reason"):
        device.check("false")


def test_a_lost_connection_is_told(device: Device, phone: FakePhone, tmp_path: Path) -> None:
    phone.stop()
    (tmp_path / "file").write_text("x")
    with pytest.raises(DeviceError, match=r"is offline|was lost|not found"):
        device.run(["true"])
    with pytest.raises(DeviceError, match=r"is offline|was lost|not found"):
        device.push(tmp_path / "file", TMP / "file")


def test_a_connection_lost_in_mid_answer_is_no_success(device: Device, phone: FakePhone) -> None:
    """adb itself exits with status 0 then."""

    def pull_the_cable() -> None:
        started = phone.data / "local/tmp/started"
        while not started.exists():
            time.sleep(0.01)
        phone.stop()

    threading.Thread(target=pull_the_cable, daemon=True).start()
    with pytest.raises(DeviceError, match=r"lost before the answer's end|offline|was lost"):
        run_on(device, "touch /data/local/tmp/started; sleep 30")


@pytest.mark.parametrize("status", [0, 3, 130])
def test_a_program_ends_with_its_own_status(device: Device, status: int) -> None:
    assert run_on(device, f"exit {status}") == status


def test_streams_stay_apart(device: Device, capfd: pytest.CaptureFixture[str]) -> None:
    run_on(device, "echo answer; echo statistics >&2")
    assert capfd.readouterr() == ("answer\n", "statistics\n")


def test_arguments_and_environment_of_a_program(
    device: Device, capfd: pytest.CaptureFixture[str]
) -> None:
    script = 'printf \'%s|\' "$@" "$A"'
    assert run_on(device, script, *HOSTILE, environment={"A": "it's $B"}) == 0
    assert capfd.readouterr().out == "".join(f"{word}|" for word in (*HOSTILE, "it's $B"))


def test_nothing_is_left_of_a_job(device: Device, phone: FakePhone) -> None:
    run_on(device, "exit 1")
    assert list((phone.data / "local/tmp/powerserve/jobs").iterdir()) == []


def test_a_program_that_does_not_answer_is_given_up() -> None:
    with pytest.raises(DeviceError, match=r"did not answer within 0 s"):
        programs.call([sys.executable, "-c", "input()"], timeout_s=0.01)


def test_an_adb_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adb = tmp_path / "adb"
    adb.write_text(
        "#!/bin/sh\necho 'error: could not install *smartsocket* listener' >&2\nexit 1\n"
    )
    adb.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(DeviceError, match=r"adb does not work: could not install"):
        choose_device()
    adb.write_text("this is no program")
    with pytest.raises(DeviceError, match=r"cannot be started"):
        choose_device()


def run_on(
    device: Device, script: str, *words: str, environment: dict[str, str] | None = None
) -> int:
    """Run a script on the device as if it were the installed program."""
    with job_folder(device) as folder:
        program = folder.write("program.sh", f"{script}\n")
        return run_program(folder, Program(program, environment or {}), words)

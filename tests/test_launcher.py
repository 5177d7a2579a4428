"""The launcher finds a Python, sets up .venv once, survives interruptions, and steps aside."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from checkouts import Checkout, make_checkout

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the launcher is a shell script")


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A fresh checkout without a Python."""
    return make_checkout(tmp_path)


@pytest.fixture
def quick(checkout: Checkout) -> Checkout:
    """A fresh checkout whose set-up takes no time: a Python that needs uv, and a pretended uv."""
    checkout.add_python(without=("ensurepip", "pip"))
    checkout.add_uv()
    return checkout


# ---- finding a Python --------------------------------------------------------------------------


def test_without_python_one_command_is_named(checkout: Checkout) -> None:
    checkout.add_tool("apt-get", "exit 0")
    outcome = checkout.run("--version")
    assert outcome.status == 2
    assert "Python 3.11 or newer" in outcome.errors
    assert "sudo apt-get install -y python3 python3-venv" in outcome.errors


def test_apt_advice_names_the_newest_python_there_is(checkout: Checkout) -> None:
    checkout.add_tool("apt-get", "exit 0")
    checkout.add_tool("apt-cache", '[ "$2" = python3.12-venv ]')
    assert "apt-get install -y python3.12-venv" in checkout.run().errors


def test_old_pythons_and_broken_shims_are_passed_over(checkout: Checkout) -> None:
    checkout.add_tool("python3.14", "echo 'pyenv: python3.14: command not found'; exit 127")
    checkout.add_tool("python3.13", "exit 1")  # the version test failed
    checkout.add_tool("python3", '[ "$1" = -c ] || { echo "set up by python3"; exit 7; }')
    outcome = checkout.run()
    assert (outcome.status, outcome.errors) == (7, "set up by python3\n")


def test_chosen_python_must_work(checkout: Checkout) -> None:
    checkout.add_python()
    checkout.environment["POWERSERVE_PYTHON"] = "python3.99"
    outcome = checkout.run()
    assert outcome.status == 2
    assert "POWERSERVE_PYTHON is python3.99" in outcome.errors


def test_python_without_venv_names_the_missing_package(checkout: Checkout) -> None:
    checkout.add_tool("apt-get", "exit 0")
    checkout.add_python(without=("ensurepip", "pip"))
    outcome = checkout.run()
    assert outcome.status == 2
    assert "-venv" in outcome.errors.splitlines()[-1]
    assert "apt-get install" in outcome.errors


# ---- real set-ups ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout that was set up with venv and pip."""
    checkout = make_checkout(tmp_path_factory.mktemp("installed"))
    checkout.add_python()
    outcome = checkout.run("first", typed="typed")
    assert outcome.output == "['first'] typed\n", outcome.errors
    assert "first run" in outcome.errors
    return checkout


def test_arguments_and_standard_input_reach_the_program(installed: Checkout) -> None:
    outcome = installed.run("run", "-p", "two words", typed="typed text")
    assert outcome.output == "['run', '-p', 'two words'] typed text\n"


def test_second_run_installs_nothing_and_says_nothing(installed: Checkout) -> None:
    log = installed.root / ".venv" / "powerserve-setup.log"
    before = log.stat().st_mtime_ns
    assert installed.run().errors == ""
    assert log.stat().st_mtime_ns == before


def test_runs_without_a_python_on_path_once_set_up(installed: Checkout) -> None:
    python = installed.tools / "python3"
    python.rename(python.with_name("hidden"))
    try:
        assert installed.run("later").output.startswith("['later']")
    finally:
        python.with_name("hidden").rename(python)


def test_works_through_symbolic_links(installed: Checkout, tmp_path: Path) -> None:
    (tmp_path / "direct").symlink_to(installed.root / "powerserve")
    (tmp_path / "relative").symlink_to("direct")
    assert installed.run("x", launcher=tmp_path / "relative").output == "['x'] \n"


def test_python_without_ensurepip_uses_its_own_pip(checkout: Checkout) -> None:
    checkout.add_python(without=("ensurepip",))
    outcome = checkout.run("x")
    assert (outcome.status, outcome.output) == (0, "['x'] \n"), outcome.errors
    assert not list((checkout.root / ".venv").glob("lib/*/site-packages/pip"))


# ---- states of the environment -----------------------------------------------------------------


def test_changed_pyproject_installs_again_into_the_same_environment(quick: Checkout) -> None:
    quick.run()
    with (quick.root / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert quick.run("x").output == "ran x\n"
    assert quick.calls() == ["venv", "pip", "pip"]


def test_touched_pyproject_installs_nothing(quick: Checkout) -> None:
    quick.run()
    (quick.root / "pyproject.toml").touch()
    assert quick.run().errors == ""
    assert quick.calls() == ["venv", "pip"]


def test_moved_checkout_is_set_up_anew(quick: Checkout) -> None:
    quick.run()
    quick.root = quick.root.rename(quick.root.with_name("moved"))
    assert quick.run("x").output == "ran x\n"
    assert quick.calls() == ["venv", "pip", "venv", "pip"]


def test_removed_python_is_noticed(quick: Checkout) -> None:
    quick.run()
    python = quick.root / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/nonexistent/python")
    assert quick.run("x").output == "ran x\n"
    assert quick.calls() == ["venv", "pip", "venv", "pip"]


def test_failed_installation_is_shown_and_tried_again(quick: Checkout) -> None:
    (quick.tools / "fail").touch()
    outcome = quick.run()
    assert outcome.status == 2
    assert "no network" in outcome.errors
    (quick.tools / "fail").unlink()
    assert quick.run("x").output == "ran x\n"


def test_failed_update_leads_to_a_fresh_environment(quick: Checkout) -> None:
    quick.run()
    with (quick.root / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    (quick.tools / "fail").touch()
    assert quick.run().status == 2
    (quick.tools / "fail").unlink()
    assert quick.run("x").output == "ran x\n"
    assert quick.calls() == ["venv", "pip", "pip", "venv", "pip"]


def test_somebody_elses_environment_is_left_alone(quick: Checkout) -> None:
    theirs = quick.root / ".venv" / "pyvenv.cfg"
    theirs.parent.mkdir()
    theirs.write_text("home = /somewhere")
    outcome = quick.run()
    assert outcome.status == 2
    assert "was not made by this launcher" in outcome.errors
    assert theirs.read_text() == "home = /somewhere"


# ---- interruptions and company -----------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_set_up_starts_again(quick: Checkout, number: signal.Signals) -> None:
    process = start_and_hold(quick)
    os.killpg(process.pid, number)
    process.communicate(timeout=20)
    assert process.returncode != 0
    (quick.tools / "hold").unlink()
    assert quick.run("x").output == "ran x\n"
    assert quick.calls() == ["venv", "pip", "venv", "pip"]


def test_two_first_runs_share_one_set_up(quick: Checkout) -> None:
    first = start_and_hold(quick)
    second = quick.start("two")
    assert second.stderr is not None
    assert "waiting for it" in second.stderr.readline()
    (quick.tools / "hold").unlink()
    assert first.communicate(timeout=20)[0] == "ran one\n"
    assert second.communicate(timeout=20)[0] == "ran two\n"
    assert quick.calls() == ["venv", "pip"]


def start_and_hold(checkout: Checkout) -> subprocess.Popen[str]:
    """A first run that has come to the installation and stays there until `hold` is removed."""
    (checkout.tools / "hold").touch()
    process = checkout.start("one")
    deadline = time.monotonic() + 20
    while not (checkout.tools / "installing").exists():
        assert time.monotonic() < deadline, "the set-up did not come to the installation"
        time.sleep(0.05)
    return process

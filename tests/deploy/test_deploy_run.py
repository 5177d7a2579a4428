"""`powerserve deploy run`: the answer comes from the phone, as it would come from here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import PROGRAM, status_of
from deploy.fake_phone.phone import FakePhone, PhoneSettings, PlugIn
from deploy.stand_in import write_bundle
from powerserve.deploy.bundle.build import BundleOptions
from powerserve.deploy.bundle.target import Target
from powerserve.storage.progress import Progress
from server_process import wait_until
from tiny_models import TinyModel, write_tiny_model

SCRIPT = Path(__file__).parents[2] / "tools/end_to_end/powerserve.sh"
PROMPT = 'it\'s "$HOME" `id` $(id) \\ * ~ !! 😀 é\r\n\ttwo\n\nlines %s\n'
GREEDY = "--flags=--temp 0 --json --deterministic"
ECHO = """#!/system/bin/sh
while [ $# -gt 1 ]; do [ "$1" = -f ] && cat "$2"; shift; done
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "a tiny model.gguf", TinyModel(embed_dim=256, ffn_dim=512))


def answer(output: str) -> list[int]:
    token_ids: list[int] = json.loads(output)["token_ids"]
    return token_ids


@pytest.mark.usefixtures("phone")
def test_the_phone_answers_as_this_machine_does(
    tiny: Path, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ("-p", PROMPT, "-n", "8")
    assert status_of("deploy", "run", tiny, "--bundle", bundle, GREEDY, *flags) == 0
    there = capfd.readouterr()
    assert "a tiny model: ggml/weights.gguf: 5.3 MB" in there.err
    assert status_of("run", "-m", tiny, *GREEDY.removeprefix("--flags=").split(), *flags) == 0
    assert answer(there.out) == answer(capfd.readouterr().out)


@pytest.mark.usefixtures("phone")
@pytest.mark.parametrize("from_file", [True, False])
def test_prompts_arrive_byte_by_byte(
    tiny: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], from_file: bool
) -> None:
    bundle = write_bundle(tmp_path / "echo.tar.gz", ECHO)
    (tmp_path / "prompt").write_bytes(PROMPT.encode())
    prompt = ("-f", tmp_path / "prompt") if from_file else ("-p", PROMPT)
    assert status_of("deploy", "run", tiny, "--bundle", bundle, *prompt) == 0
    assert capfdbinary.readouterr().out == PROMPT.encode()


@pytest.mark.usefixtures("phone")
def test_the_status_is_the_programs_own(
    tiny: Path, bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert status_of("deploy", "run", tiny, "--bundle", bundle, "--flags=--nonsense") == 2
    assert "unrecognized arguments: --nonsense" in capfd.readouterr().err
    failing = write_bundle(tmp_path / "failing.tar.gz", "exit 77\n")
    assert status_of("deploy", "run", tiny, "--bundle", failing) == 77
    killed = write_bundle(tmp_path / "killed.tar.gz", "kill -9 $$\n")
    assert status_of("deploy", "run", tiny, "--bundle", killed) == 128 + signal.SIGKILL


@pytest.mark.usefixtures("phone")
def test_flags_that_the_device_gets(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = write_bundle(tmp_path / "echo.tar.gz", 'printf "%s|" "$@"\n')
    write_tiny_model(tmp_path / "small.gguf", TinyModel(num_layers=1))
    flags = ("-s", "--draft-model", tmp_path / "small.gguf", "-n", "3", "--chat")
    assert status_of("deploy", "run", tiny, "--bundle", bundle, *flags, "--flags=--stop 'a b'") == 0
    words = capfd.readouterr().out.split("|")
    models = "/data/local/tmp/powerserve/workspace"
    assert words[:6] == [
        *("run", "--model", f"{models}/a tiny model", "--use-spec"),
        *("--draft-model", f"{models}/small"),
    ]
    assert words[6:-1] == ["--no-qnn", "-f", words[8], "-n", "3", "--chat", "--stop", "a b"]


def test_other_processors_are_refused(
    plug_in: PlugIn, tiny: Path, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    phone = plug_in(PhoneSettings(properties={"ro.product.cpu.abi": "x86_64"}))
    assert status_of("deploy", "run", tiny, "--bundle", bundle) == 2
    assert "has a processor of the kind x86_64, but bundles are for" in capfd.readouterr().err
    assert phone.pushed_bytes == 0


@pytest.mark.usefixtures("phone")
def test_speculation_needs_a_draft_model(
    tiny: Path, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert status_of("deploy", "run", tiny, "--bundle", bundle, "-s") == 2
    assert "comes without a draft model: name one with --draft-model" in capfd.readouterr().err


def test_ctrl_c_ends_the_program_on_the_phone(phone: FakePhone, tiny: Path, tmp_path: Path) -> None:
    script = "echo $$ > /data/local/tmp/running\nexec sleep 600\n"
    bundle = write_bundle(tmp_path / "sleeping.tar.gz", script)
    command = [*PROGRAM, "deploy", "run", str(tiny), "--bundle", str(bundle)]
    running = phone.data / "local/tmp/running"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: running.exists() and running.read_text() != "")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    wait_until(lambda: not Path(f"/proc/{running.read_text().strip()}/fd/0").exists())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", "gone.gguf"), "no model answers to `gone.gguf`"),
        (("run", "llama-3.2-1b", "-s"), "llama-3.2-1b has no draft model; these have one: deep"),
        (("run", "gone", "--bundle", "gone.tar.gz"), "--bundle: there is no file gone.tar.gz"),
        (("run", "x", "--device", "0815"), "there is no device 0815"),
        (("run", "x", "-f", "gone.txt"), "the prompt file gone.txt cannot be read"),
        (
            ("run", "x", "--sign", "false", "--bundle", SCRIPT),
            "`false` ended with status 1 without",
        ),
        (("run", "x", "--sign", "'", "--bundle", SCRIPT), "`'` cannot be run: No closing"),
        (("run", "x", "--flags='"), "has an unclosed quote"),
        (("serve", "x", "--port", "65536"), "--port 65536 is no port: they end at 65535"),
        (("logs",), "no server has been started on 127"),
    ],
)
@pytest.mark.usefixtures("phone")
def test_mistakes_end_with_a_sentence(
    bundle: Path,
    capfd: pytest.CaptureFixture[str],
    arguments: tuple[str | Path, ...],
    sentence: str,
) -> None:
    if "--bundle" not in arguments and arguments[0] == "run":
        arguments += ("--bundle", bundle)
    assert status_of("deploy", *arguments) == 2
    told = capfd.readouterr().err.splitlines()[-1]
    assert told.startswith("powerserve deploy")
    assert sentence in told
    assert not told.endswith(".")


@pytest.mark.usefixtures("phone")
def test_without_a_bundle_the_one_for_the_device_is_built(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def build(target: Target, options: BundleOptions, progress: Progress) -> Path:
        built.append((target.name, options))
        return write_bundle(tmp_path / "built.tar.gz", "echo built\n")

    monkeypatch.setattr("powerserve.deploy.bundle.build.build_bundle", build)
    assert status_of("deploy", "run", tiny, "--ndk", tmp_path) == 0
    assert capfd.readouterr().out == "built\n"
    assert built == [("android-glibc", BundleOptions(ndk=tmp_path))]


@pytest.mark.usefixtures("phone")
def test_a_signed_bundle_is_sent_instead(
    tiny: Path, bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = write_bundle(tmp_path / "other.tar.gz", "echo signed\n")
    signer = tmp_path / "sign.sh"
    signer.write_text(f'[ "$1" = -q ] && [ "$2" = "{bundle}" ] && cp "{other}" "$3"\n')
    sign = f"sh '{signer}' -q"
    assert status_of("deploy", "run", tiny, "--bundle", bundle, "--sign", sign) == 0
    assert capfd.readouterr().out == "signed\n"


def test_the_originals_script(phone: FakePhone, tiny: Path, tmp_path: Path) -> None:
    def script(*words: str | Path) -> subprocess.CompletedProcess[bytes]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = os.environ | {"PATH": path}
        return subprocess.run([SCRIPT, *words], env=environment, capture_output=True, timeout=60)

    bundle = write_bundle(tmp_path / "echo.tar.gz", ECHO)
    done = script("run", tiny, "--bundle", bundle, "-n", "5", "-c", "-p", PROMPT)
    assert (done.returncode, done.stdout) == (0, PROMPT.encode())
    done = script("compile", "--target", "toaster")
    assert done.returncode == 2
    assert done.stderr.startswith(b"end_to_end.py: error: there is no target 'toaster'")
    assert script("clean").returncode == 0
    assert list((phone.data / "local/tmp").iterdir()) == []

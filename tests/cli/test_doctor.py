"""`powerserve doctor`: what it finds, what it makes of that, and its exit status."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from command_line import status_of
from powerserve.backend.ggml import locate
from powerserve.backend.ggml.kernels.locate import ENVIRONMENT_VARIABLE as KERNELS_VARIABLE
from powerserve.cli import comparison, diagnosis
from powerserve.cli.comparison import Speed
from powerserve.cli.diagnosis import Library, huge_pages
from powerserve.cli.doctor import speed_lines
from tiny_models import write_tiny_model

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store and cache: the prebuilt library is the one in use."""
    folder = tmp_path / "home"
    monkeypatch.setenv("POWERSERVE_HOME", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(locate.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.delenv(KERNELS_VARIABLE, raising=False)
    return folder


def test_a_sound_machine(home: Path, capsys: Capture) -> None:
    (home / "models").mkdir(parents=True)
    write_tiny_model(home / "models/tiny.gguf")
    assert status_of("doctor", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["usable"] is True and found["problems"] == []
    library = found["library"]
    assert (library["origin"], library["version"]) == ("wheel", "0.20.2")
    assert Path(library["folder"]) == locate.wheel_folder()
    assert not set(library["unused_features"]) & set(library["features"])
    assert found["threads"]["used"] >= 1
    assert found["store"]["models"] == ["tiny"]
    assert found["packages"]["numpy"] is not None


def test_the_text_names_what_is_in_use(capsys: Capture) -> None:
    assert status_of("doctor") == 0
    text = capsys.readouterr().out
    for words in ("ggml 0.20.2 (wheel)", "physical cores", "available of", "none in ", "numpy "):
        assert words in text
    assert "would help: there is no model yet" in text
    assert text.endswith("everything that is needed works\n")


def test_a_missing_library_is_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv(locate.ENVIRONMENT_VARIABLE, str(tmp_path))
    assert status_of("doctor") == 1
    text = capsys.readouterr().out
    assert f"broken: POWERSERVE_GGML_DIR is {tmp_path}, but there is no ggml library" in text
    assert "everything" not in text


def test_a_store_that_cannot_hold_models_is_status_1(home: Path, capsys: Capture) -> None:
    home.write_text("a file where the folder should be")
    assert status_of("doctor", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["usable"] is False
    assert "set POWERSERVE_HOME" in found["problems"][0]


def test_a_store_that_cannot_be_read_is_status_1(home: Path, capsys: Capture) -> None:
    (home / "models").mkdir(parents=True)
    (home / "models/odd.json").write_text("no entry")
    assert status_of("doctor") == 1
    assert "odd.json is not valid JSON" in capsys.readouterr().out.split("broken: ")[1]


WHEEL = Library("/w", "wheel", "1", ("avx2",), unused_features=("avx512", "amx_int8"))


@pytest.mark.parametrize(
    ("library", "words"),
    [
        (WHEEL, ["the CPU has avx512, amx_int8", "`powerserve build-native`"]),
        (replace(WHEEL, unused_features=()), []),
        (replace(WHEEL, origin="native", native_build="/n"), []),
        (replace(WHEEL, origin="environment", native_build="/n"), ["unset it"]),
        (Library(error="broken"), []),
    ],
)
def test_advice_about_the_library(library: Library, words: list[str]) -> None:
    advice = list(diagnosis._library_advice(library))
    assert len(advice) == bool(words)
    assert all(word in advice[0] for word in words)


def test_without_a_compiler_the_advice_is_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "get a C++ compiler" in next(diagnosis._library_advice(WHEEL))


def test_kernels_that_are_not_there(capsys: Capture) -> None:
    assert status_of("doctor") == 0
    text = capsys.readouterr().out
    assert "\nkernels       ggml's\n" in text
    assert "`powerserve build-native --only kernels` compiles them" in text


def test_kernels_are_named_with_their_instruction_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    library = tmp_path / "kernels.so"
    library.touch()
    monkeypatch.setenv(KERNELS_VARIABLE, str(library))
    monkeypatch.setattr(diagnosis, "describe_kernels", lambda path, check: ("avx9", "avx8"))
    assert status_of("doctor") == 0
    text = capsys.readouterr().out
    assert f"\nkernels       our own for avx9 avx8 in {library}\n" in text
    assert "build-native --only" not in text


def test_kernels_that_do_not_work_only_cost_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    library = tmp_path / "kernels.so"
    library.write_text("junk")
    monkeypatch.setenv(KERNELS_VARIABLE, str(library))
    assert status_of("doctor", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["usable"] is True
    assert f"the kernels {library} do not work here" in found["kernels"]["error"]
    assert any("own kernels are not used: " in advice for advice in found["advice"])


def test_built_kernels_that_do_not_work_can_be_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "kernels.so"
    library.write_text("junk")
    for name in ("kernel_library", "built_library"):
        monkeypatch.setattr(diagnosis, name, lambda *folders: library)
    assert diagnosis._kernels(WHEEL).error.endswith("--only kernels --force` makes them anew")


@pytest.mark.parametrize(
    ("content", "choice"),
    [("always [madvise] never\n", "madvise"), ("always madvise [never]\n", "never"), (None, None)],
)
def test_huge_pages(tmp_path: Path, content: str | None, choice: str | None) -> None:
    file = tmp_path / "enabled"
    if content is not None:
        file.write_text(content)
    assert huge_pages(file) == choice


def test_measuring_needs_two_libraries(capsys: Capture) -> None:
    assert status_of("doctor", "--measure", "--json") == 0
    printed = capsys.readouterr()
    assert "tokens_per_s" not in json.loads(printed.out)
    assert "not measured: there is nothing to compare" in printed.err
    assert "powerserve build-native" in printed.err


def test_measuring_runs_each_library_in_its_own_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    # The same library under both names: what counts is that real runs are made and read.
    monkeypatch.setattr(locate, "native_folder", locate.wheel_folder)
    monkeypatch.setattr(comparison, "ROUNDS", 1)
    monkeypatch.setattr(comparison, "NUM_TOKENS", 8)
    monkeypatch.setattr(comparison, "PROMPT", "hello world")
    model = write_tiny_model(tmp_path / "tiny.gguf")
    assert status_of("doctor", "--measure", "--json", "-m", model) == 0
    printed = capsys.readouterr()
    speeds = json.loads(printed.out)["tokens_per_s"]
    assert set(speeds) == {"wheel", "native"}
    assert all(speed > 0 for each in speeds.values() for speed in each.values())
    assert "measuring native (1 of 1)" in printed.err


def test_all_that_was_built_is_compared_with_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    wheel, native = Path("wheel"), Path("native")
    monkeypatch.setattr(locate, "wheel_folder", lambda: wheel)
    monkeypatch.setattr(locate, "native_folder", lambda: native)
    monkeypatch.setattr(comparison, "kernel_library", lambda folder: tmp_path / "kernels.so")
    runs = {
        comparison.Contestant(wheel, "ggml"): Speed(100, 10),
        comparison.Contestant(native, "ggml"): Speed(200, 20),
        comparison.Contestant(native, "native"): Speed(300, 50),
    }
    monkeypatch.setattr(comparison, "_run", lambda contestant, model: runs[contestant])
    lines = list(speed_lines(comparison.compare("")))
    assert [line.split()[0] for line in lines if line] == [
        *("wheel", "native", "kernels", "native/wheel", "kernels/wheel")
    ]
    assert lines[-1].split()[1:] == ["prefill", "3.00", "decode", "5.00"]


def test_the_best_run_counts() -> None:
    runs = [Speed(1, 9), Speed(3, 7), Speed(2, 8)]
    assert comparison._best(runs) == Speed(3, 9)

"""The form of the answer, from the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from command_line import program, status_of
from tiny_models import write_tiny_model

Capture = pytest.CaptureFixture[str]
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
)
FLAGS = ("-p", "Is water wet?", "-n", "400", "--temp", "0", "-q")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that would otherwise write nonsense."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def test_the_real_model_answers_as_the_schema_asks(smollm2: Path) -> None:
    flags = ("--chat", "-c", "256", "--json-schema", SCHEMA)
    done = program("run", "-m", smollm2, *FLAGS, *flags)
    assert done.returncode == 0 and done.stderr == b""
    assert isinstance(json.loads(done.stdout)["ok"], bool)


def test_a_schema_may_be_a_file(tiny: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "schema.json"
    file.write_text(SCHEMA)
    assert status_of("run", "-m", tiny, *FLAGS, "--json-schema", file) == 0
    assert isinstance(json.loads(capsys.readouterr().out)["ok"], bool)


@pytest.mark.parametrize(
    "text", ['root ::= "yes" | "no"', 'start: "yes" | "no"'], ids=["GBNF", "Lark"]
)
def test_answers_follow_a_grammar(tiny: Path, tmp_path: Path, capsys: Capture, text: str) -> None:
    file = tmp_path / "grammar.txt"
    file.write_text(text)
    assert status_of("run", "-m", tiny, *FLAGS, "--grammar", file) == 0
    assert capsys.readouterr().out in ("yes\n", "no\n")


def test_answers_match_a_regular_expression(tiny: Path, capsys: Capture) -> None:
    pattern = "[A-Z][a-z]{2,5}, it (is|is not)!"
    assert status_of("run", "-m", tiny, *FLAGS, "--regex", pattern) == 0
    assert re.fullmatch(pattern, capsys.readouterr().out.removesuffix("\n"))


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--regex", "(?=a)"), "regular expression cannot be used"),
        (("--json-schema", "{"), "JSON schema cannot be used"),
        (("--json-schema", "no-such-file.json"), "no-such-file.json cannot be read"),
        (("--grammar", "no-such-file.gbnf"), "no-such-file.gbnf cannot be read"),
        (("--regex", "a", "--ignore-eos"), "ignore_eos cannot be combined with a grammar"),
        (("--regex", "a", "--grammar", "b"), "not allowed with argument"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    tiny: Path, capsys: Capture, flags: tuple[str, ...], reason: str
) -> None:
    assert status_of("run", "-m", tiny, "-p", "x", *flags) == 2
    assert reason in capsys.readouterr().err


def test_a_file_that_is_no_text_is_refused(tiny: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "grammar.lark"
    file.write_bytes(b"\xff\xfe")
    assert status_of("run", "-m", tiny, "-p", "x", "--grammar", file) == 2
    assert "is not UTF-8 text" in capsys.readouterr().err

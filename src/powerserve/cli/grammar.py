"""Flags that make the answer follow a grammar."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from powerserve.core.errors import ConfigError

if TYPE_CHECKING:
    from powerserve.sampler.grammar import Grammar


def add_grammar_flags(parser: ArgumentParser) -> None:
    """`--json-schema`, `--grammar` and `--regex`."""
    group = parser.add_argument_group("form of the answer").add_mutually_exclusive_group()
    group.add_argument(
        "--json-schema", metavar="FILE|JSON", help="answer with JSON that fits this schema"
    )
    group.add_argument(
        "--grammar", type=Path, metavar="FILE", help="follow a grammar (Lark, or GBNF)"
    )
    group.add_argument("--regex", metavar="PATTERN", help="answer with text that matches")


def grammar_from_flags(arguments: Namespace) -> Grammar | None:
    """The grammar that the flags give, None without them. Raises a PowerServeError."""
    from powerserve.sampler.grammar import Grammar, GrammarKind

    if arguments.json_schema is not None:
        return Grammar.from_schema(_text_or_file(arguments.json_schema))
    if arguments.grammar is not None:
        return Grammar.from_text(_read(arguments.grammar))
    if arguments.regex is not None:
        return Grammar(GrammarKind.REGEX, arguments.regex)
    return None


def _text_or_file(value: str) -> str:
    return value if value.lstrip().startswith("{") else _read(Path(value))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None

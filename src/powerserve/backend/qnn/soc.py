"""Qualcomm's SoCs as data (socs.toml): what the compiler needs, and how a phone names itself."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from powerserve.core.errors import ConfigError, UsageError

TABLE = Path(__file__).with_name("socs.toml")


@dataclass(frozen=True, slots=True)
class Soc:
    """A system on a chip with an HTP; socs.toml explains the fields."""

    model: int
    part: str
    title: str
    htp_arch: int
    vtcm_mb: int
    hvx_threads: int
    names: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    compile_as: int | None = None

    @property
    def compiler_model(self) -> int:
        """The number that the compiler is given."""
        return self.model if self.compile_as is None else self.compile_as

    def answers_to(self, name: str) -> bool:
        """Whether `name` means this SoC: its number, part, title or another name."""
        known = (str(self.model), self.part, self.title, *self.names)
        return _key(name) in {key for each in known for key in (_key(each), _short(each))}


def load_socs(extra: Path | None = None) -> tuple[Soc, ...]:
    """The SoCs of `extra`, a file in the form of socs.toml, and the known ones after them.

    Raises:
        ConfigError: `extra` is missing or not in that form.
    """
    own = () if extra is None else _read(extra)
    return own + _read(TABLE)


def find_soc(name: str, socs: Sequence[Soc]) -> Soc:
    """The SoC that `name` (a number, part or name in any spelling) means; raises UsageError."""
    for soc in socs:
        if soc.answers_to(name):
            return soc
    known = ", ".join(f"{soc.part} ({soc.title})" for soc in socs)
    raise UsageError(
        f"the SoC {name!r} is not known; known are {known}; to add one, describe it in a file as "
        f"{TABLE.name} does and name that file with --soc-table"
    )


def soc_by_model(model: int, socs: Sequence[Soc]) -> Soc | None:
    """The SoC with Qualcomm's number `model`."""
    return next((soc for soc in socs if soc.model == model), None)


def soc_of_phone(part: str, platform: str, socs: Sequence[Soc]) -> Soc | None:
    """The SoC of a phone by its `ro.soc.model` and `ro.board.platform`, or None if unknown.

    The part decides; old phones leave it empty, and then the platform's first SoC is meant.
    """
    if part:
        return next((soc for soc in socs if _key(part).startswith(_key(soc.part))), None)
    return next((soc for soc in socs if platform in soc.platforms), None)


def _read(path: Path) -> tuple[Soc, ...]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        return msgspec.convert(content.get("soc", ()), tuple[Soc, ...])
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: an entry of [[soc]] is wrong: {error}") from None


def _key(name: str) -> str:
    """`name` without what people spell differently: "8+ Gen 1" is "8plusgen1"."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("+", "plus"))


def _short(name: str) -> str:
    """As people shorten it: without "Snapdragon"."""
    return _key(name).removeprefix("snapdragon")

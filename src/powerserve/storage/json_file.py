"""JSON configuration files: read into a type, with one clear sentence for every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from powerserve.core.errors import ConfigError
from powerserve.storage import atomic

T = TypeVar("T")


def read_json(path: Path, kind: type[T]) -> T:
    """Read the JSON object in `path` as `kind`, a dataclass or a mapping type.

    Unknown keys are ignored, missing ones take the dataclass's defaults, and a value of another
    type is refused. Raises ConfigError with a sentence that names the file and the key.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except msgspec.ValidationError as error:
        raise ConfigError(_wrong_value(path, str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None


def write_json(path: Path, value: Any) -> None:
    """Replace the file `path` by `value` as JSON. Raises OSError."""
    atomic.write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """`value` as the original writes JSON: an indent of 4 spaces, ASCII, no newline at the end."""
    return json.dumps(value, indent=4, allow_nan=False).encode()


def _wrong_value(path: Path, message: str) -> str:
    """Turn msgspec's "Expected `int`, got `str` - at `$.a.b`" into a sentence about `a.b`."""
    problem, _, place = message.partition(" - at ")
    key = place.strip("`").removeprefix("$").removeprefix(".")
    where = f"the key `{key}`" if key else "the file as a whole"
    return f"{path}: {where} is wrong: {problem[:1].lower()}{problem[1:]}"

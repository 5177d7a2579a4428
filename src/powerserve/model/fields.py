"""Numbers and words out of a mapping that nobody has checked yet."""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import repr as short_repr
from typing import Any

import numpy as np

from powerserve.core.errors import PowerServeError, UnsupportedModelError

_REQUIRED: Any = object()
_SMALLEST = 1e-30  # below it float32, in which backends compute, comes to its end


class Fields:
    """Checked access to the values of a model file or a configuration file.

    A missing key without default, a value of another type or one outside of its range raises
    `error` with a sentence that begins with `source`.
    """

    def __init__(
        self, values: Mapping[str, object], source: str, error: type[PowerServeError]
    ) -> None:
        self._values = values
        self._source = source
        self._error = error

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def error(self, reason: str) -> PowerServeError:
        """The error that says `reason` about the source."""
        return self._error(f"{self._source}: {reason}")

    def unsupported(self, reason: str) -> UnsupportedModelError:
        """The error for something that is sound but cannot be run."""
        return UnsupportedModelError(f"{self._source}: {reason}")

    def integer(self, key: str, default: int = _REQUIRED, *, minimum: int = 1, maximum: int) -> int:
        """A whole number within a range, both ends included."""
        return self._checked_integer(key, self._get(key, default), minimum, maximum)

    def number(self, key: str, default: float = _REQUIRED, *, maximum: float) -> float:
        """A number above zero, up to `maximum`."""
        value = self._get(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not _SMALLEST <= value <= maximum:  # NaN is not within any range
            raise self.error(
                f"{key} is {short_repr(value)}, not a number above 0 and up to {maximum:g}"
            )
        return float(value)

    def text(self, key: str, default: str = _REQUIRED) -> str:
        """A word or sentence that is not empty."""
        value = self._get(key, default)
        if not isinstance(value, str) or (not value and default is _REQUIRED):
            raise self.error(f"{key} is {short_repr(value)}, not a text")
        return value

    def section(self, key: str) -> Fields:
        """The mapping under `key`, with errors that name it."""
        value = self._get(key, _REQUIRED)
        if not isinstance(value, Mapping):
            raise self.error(f"{key} is {short_repr(value)}, not an object")
        return Fields(value, f"{self._source}: {key}", self._error)

    def per_layer(
        self, key: str, num_layers: int, default: int = _REQUIRED, *, maximum: int
    ) -> int:
        """A whole number from 1 given for all layers at once or for each; all must be equal."""
        value = self._get(key, default)
        if not isinstance(value, np.ndarray):
            return self._checked_integer(key, value, 1, maximum)
        if value.size != num_layers or value.dtype.kind not in "iu":
            raise self.error(f"{key} is not a list of {num_layers} whole numbers, one per layer")
        if (value != value[0]).any():
            raise self.unsupported(f"{key} differs between layers, which is not supported")
        return self._checked_integer(key, int(value[0]), 1, maximum)

    def _checked_integer(self, key: str, value: object, minimum: int, maximum: int) -> int:
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        if not is_integer or not minimum <= value <= maximum:  # type: ignore[operator]
            raise self.error(
                f"{key} is {short_repr(value)}, not a whole number from {minimum} to {maximum}"
            )
        return value  # type: ignore[return-value]

    def _get(self, key: str, default: Any) -> Any:
        value = self._values.get(key, default)
        if value is _REQUIRED:
            raise self.error(f"{key} is missing")
        return value

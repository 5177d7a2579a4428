"""What a chat template may use up: time, and the size of the values it makes.

A template comes with a model file, so it may be hostile. It runs inside the process, where C code
cannot be interrupted; hence nothing large may come into being in the first place. Every value that
a template makes is *admitted*: measured with all it refers to, and charged. As admitted values are
bounded, so is each single step on them, and between steps the clock is looked at.
"""

from __future__ import annotations

import time
from collections.abc import (
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
    ValuesView,
)
from typing import Any

from powerserve.core.errors import TemplateError

# Sizes are in characters; a number or a container's slot counts as _SLOT of them.
_SLOT = 16
_VALUE_SIZE = 4 << 20  # of one value; grows with the conversation
_TOTAL_SIZE = 64 << 20  # of all values made; templates that append to a string need much
_INT_BITS = 4096
_NESTING = 64  # levels of lists in lists


class Budget:
    """The allowance of one rendering; not for use by several threads."""

    def __init__(self, variables: dict[str, Any], time_s: float) -> None:
        """`variables` are the caller's values, plain data; bigger ones allow for bigger results.

        They must stay alive and unchanged for as long as the budget is used.
        """
        # Containers of the caller by identity: they are measured once, however often met.
        self._known: dict[int, int] = {}
        size = self._record(variables)
        self._value_size = _VALUE_SIZE + 4 * size
        self._left = _TOTAL_SIZE + 256 * size
        self._deadline = time.monotonic() + time_s

    def charge(self, size: int = 0) -> None:
        """Take `size` from the allowance; raises TemplateError if it, or the time, is used up."""
        self._left -= size
        if self._left < 0 or time.monotonic() > self._deadline:
            raise TemplateError("the model's chat template takes too much memory or time")

    def foresee(self, size: int) -> None:
        """Raise TemplateError, before it is made, for a value of more than the allowed size."""
        self._refuse_if(size > self._value_size)

    def admit(self, value: Any) -> Any:
        """Charge for a value the template made and return it, an iterator as a list.

        Raises TemplateError for a value that is too large.
        """
        if isinstance(value, range | Iterator | ItemsView | KeysView | ValuesView):
            value = list(self.iterate(value))  # no value is lazy: its size would be unknown
        self.check(value)
        if isinstance(value, list | tuple | dict):
            self.charge(_SLOT * len(value))  # the elements were charged when they were made
        else:
            self.charge(_size_of_scalar(value))
        return value

    def check(self, value: Any) -> None:
        """Raise TemplateError if `value`, with all it refers to, is too large."""
        if isinstance(value, str):
            self.foresee(len(value))
        elif isinstance(value, list | tuple | dict | int):
            self._measure(value)

    def iterate(self, value: Iterable[Any]) -> Iterator[Any]:
        """Go through `value`, charging for every step."""
        for item in value:
            self.charge(_SLOT)
            yield item

    def _measure(self, value: Any) -> None:
        """Add up everything in `value`, as often as it occurs there."""
        size = 0
        pending = [(value, 0)]
        while pending:
            item, depth = pending.pop()
            known = self._known.get(id(item))
            size += _size_of_scalar(item) if known is None else known
            if known is None and isinstance(item, list | tuple | dict):
                self._refuse_if(depth >= _NESTING or size + len(item) > self._value_size)
                pending += [(child, depth + 1) for child in _children(item)]
        self._refuse_if(size > self._value_size)

    def _record(self, value: Any) -> int:
        """Measure a caller's value and remember its containers."""
        size = _size_of_scalar(value)
        if isinstance(value, list | dict):
            size += sum(map(self._record, _children(value)))
            self._known[id(value)] = size
        return size

    @staticmethod
    def _refuse_if(too_large: bool) -> None:
        if too_large:
            raise TemplateError("the model's chat template builds too large a value")


def _children(container: Any) -> list[Any]:
    if isinstance(container, dict):
        return [*container, *container.values()]
    return list(container)


def _size_of_scalar(item: Any) -> int:
    """The size of one thing without what it contains."""
    if isinstance(item, str):
        return _SLOT + len(item)
    if isinstance(item, int) and item.bit_length() > _INT_BITS:
        raise TemplateError("the model's chat template computes too large a number")
    return _SLOT


def plain_data(value: Any, depth: int = 0) -> Any:
    """Copy a caller's value as dicts, lists, strings and numbers, which have no side doors.

    Raises TemplateError for anything else and for more than 64 levels.
    """
    if depth >= _NESTING:
        raise TemplateError("the conversation is nested too deeply")
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): plain_data(item, depth + 1) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [plain_data(item, depth + 1) for item in value]
    raise TemplateError(f"a conversation cannot contain a value of type {type(value).__name__}")

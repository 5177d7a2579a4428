"""Bodies that are not as they should be, made from some that are."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from math import inf, nan
from typing import Any

Place = tuple[Any, Any]  # a list or an object, and the index or key in it

_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, -0.0, 2**31, 2**53 + 1, 2**63, -(2**64), 10**40, 1e308),
    *(nan, inf, -inf),
    *("", " ", "\0", "\ud800", "\u202e", "😀", "x" * 3000, "1", "null", "../../etc/passwd"),
    *([], {}, [[]], [None], [{}], {"": ""}, {"type": "text"}, [1, "a", None], {"a": {"b": [1]}}),
)
_MAX_CHANGES = 3


def malformed(body: dict[str, Any], chance: random.Random) -> bytes:
    """A body that may or may not be acceptable, and that may not even be JSON."""
    odd = copy.deepcopy(body)
    for _ in range(chance.randint(0, _MAX_CHANGES)):
        _change(odd, chance)
    return chance.choice(_DAMAGES)(json.dumps(odd).encode(), chance)


def _change(body: dict[str, Any], chance: random.Random) -> None:
    """Replace, remove, wrap or repeat something."""
    places = list(_places(body))
    if not places:
        return
    container, key = chance.choice(places)
    match chance.choice(("replace", "replace", "replace", "remove", "wrap", "repeat")):
        case "replace":
            container[key] = copy.deepcopy(chance.choice(_ODD_VALUES))
        case "remove":
            del container[key]
        case "wrap":
            container[key] = chance.choice(([container[key]], {"value": container[key]}))
        case "repeat":
            container[key] = [container[key]] * chance.choice((2, 40))


def _places(value: Any) -> Iterator[Place]:
    """Everything inside."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


def _whole(text: bytes, chance: random.Random) -> bytes:
    return text


def _cut(text: bytes, chance: random.Random) -> bytes:
    return text[: chance.randrange(len(text))]


def _with_bad_byte(text: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(text))
    return (
        text[:place] + chance.choice((b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\0")) + text[place:]
    )


def _with_tail(text: bytes, chance: random.Random) -> bytes:
    return text + chance.choice((b"}", b"{}", b"\n\n[1]", b",", b"\xef\xbb\xbf"))


def _with_twin_keys(text: bytes, chance: random.Random) -> bytes:
    """Every key of the outermost object again, with another value."""
    twins = "".join(f', "{key}": {chance.choice(("1", "null", "[]"))}' for key in json.loads(text))
    return text[:-1] + (twins or ', "a": 1').encode() + b"}" if len(text) > 2 else text


def _deep(text: bytes, chance: random.Random) -> bytes:
    depth = chance.choice((100, 1000, 100_000))
    opening, closing = chance.choice(((b"[", b"]"), (b'{"a":', b"}")))
    nest = opening * depth + b"1" + closing * chance.choice((0, depth))
    return b'{"tools": ' + nest + b", " + text[1:]


_DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_whole, _whole, _whole, _whole, _whole),
    *(_cut, _with_bad_byte, _with_tail, _with_twin_keys, _deep),
)

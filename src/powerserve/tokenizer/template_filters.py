"""The filters and functions a chat template may use: those that templates of models do use.

Jinja has more, but some of them make large values out of small ones (`center`, `indent`, `round`
with a precision) and none of those left out is needed by a chat template. The ones below that could
grow a value check its size first. Each is given the budget of the rendering.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from typing import Any

import jinja2
from jinja2.filters import FILTERS
from jinja2.runtime import Context
from jinja2.sandbox import safe_range
from jinja2.utils import Namespace

from powerserve.tokenizer.template_budget import Budget

_BUILTIN = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
    "int", "items", "last", "length", "list", "lower", "map", "max", "min", "reject",
    "rejectattr", "reverse", "select", "selectattr", "sort", "string", "title", "unique",
    "upper",
)  # fmt: skip
_MAX_INDENT = 16  # spaces
_MAX_STRIPPED = 100  # characters
_SIZED_CONVERSION = re.compile(r"%[^A-Za-z%]*\d")  # “%99d”: C libraries pad to any width

GetBudget = Callable[[], Budget]


class PlainNamespace(Namespace):
    """A namespace whose text does not show its contents, which could be exponentially long."""

    def __repr__(self) -> str:
        return "<namespace>"


class TemplateRefusal(jinja2.TemplateError):
    """The template itself refused the conversation, with `raise_exception`."""


def allowed_filters(budget: GetBudget) -> dict[str, Callable[..., Any]]:
    """The filters by name."""
    own: dict[str, Callable[..., Any]] = {
        "join": _join,
        "replace": _replace,
        "indent": _indent,
        "tojson": _tojson,
        "trim": _trim,
    }
    filters: dict[str, Callable[..., Any]] = {name: FILTERS[name] for name in _BUILTIN}
    filters |= {name: partial(function, budget) for name, function in own.items()}
    filters["safe"] = str  # nothing is escaped, so nothing needs to be exempted
    return filters


def allowed_globals(now: Callable[[], datetime]) -> dict[str, Any]:
    """The functions by name."""
    return {
        "range": safe_range,
        "namespace": PlainNamespace,
        "dict": dict,
        "raise_exception": _raise_exception,
        "strftime_now": partial(_strftime_now, now),
    }


def joined_text(budget: GetBudget, values: Iterable[Any], separator: str = "") -> str:
    """The texts of `values`, with `separator` between them."""
    allowance = budget()
    parts: list[str] = []
    size = 0
    for value in values:
        parts.append(str(value))
        size += len(parts[-1]) + len(separator)
        allowance.foresee(size)
        allowance.charge()
    return separator.join(parts)


def check_replacement(budget: Budget, text: str, old: str, new: str) -> None:
    """Raise TemplateError if replacing `old` by `new` would make `text` too long."""
    budget.foresee(len(text) + text.count(old) * max(0, len(new) - len(old)))


def check_stripped(characters: Any) -> None:
    """Refuse to strip more than a few different characters: each is sought for each position."""
    if isinstance(characters, str) and len(characters) > _MAX_STRIPPED:
        raise TemplateRefusal("the model's chat template strips too many different characters")


def _trim(budget: GetBudget, value: Any, chars: str | None = None) -> str:
    check_stripped(chars)
    return str(value).strip(chars)


@jinja2.pass_context
def _join(
    budget: GetBudget,
    context: Context,
    value: Iterable[Any],
    d: str = "",
    attribute: str | None = None,
) -> str:
    if attribute is not None:
        value = FILTERS["map"](context, value, attribute=attribute)
    return joined_text(budget, value, str(d))


def _replace(budget: GetBudget, s: object, old: str, new: str, count: int = -1) -> str:
    text = str(s)
    check_replacement(budget(), text, str(old), str(new))
    return text.replace(str(old), str(new), -1 if count is None else count)


def _indent(
    budget: GetBudget, s: str, width: int | str = 4, first: bool = False, blank: bool = False
) -> str:
    text = str(s)
    step = len(width) if isinstance(width, str) else width
    budget().foresee(len(text) + step * (len(text.splitlines()) + 1))
    indented: str = FILTERS["indent"](text, width, first, blank)
    return indented


def _tojson(
    budget: GetBudget,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As Hugging Face's `apply_chat_template`: no HTML escapes, other scripts kept readable."""
    if indent is not None:
        indent = max(0, min(int(indent), _MAX_INDENT))
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return joined_text(budget, encoder.iterencode(value))


def _raise_exception(message: str) -> None:
    reason = str(message).strip().rstrip(".")
    raise TemplateRefusal(f"the model's chat template refuses the conversation: {reason}")


def _strftime_now(now: Callable[[], datetime], form: str) -> str:
    if len(form) > 200 or _SIZED_CONVERSION.search(form):
        raise TemplateRefusal(f"the date format {form[:40]!r} is not allowed")
    return now().strftime(form)

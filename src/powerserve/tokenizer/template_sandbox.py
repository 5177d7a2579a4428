"""Jinja as chat templates expect it, and as a hostile one cannot abuse it.

Settings and extras are those of Hugging Face's `apply_chat_template`. On top of Jinja's immutable
sandbox, attributes and filters are allowed by name, and a `Budget` bounds time and memory: loops,
calls, operators, literals, comparisons and output are rewritten or intercepted to be charged. This
needs neither a second process nor a watchdog thread, neither of which could stop C code cleanly.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import update_wrapper
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.utils import Namespace

from powerserve.tokenizer.template_budget import Budget
from powerserve.tokenizer.template_filters import (
    allowed_filters,
    allowed_globals,
    check_replacement,
    check_stripped,
    joined_text,
)
from powerserve.tokenizer.template_guards import ADMIT, CONCATENATE, ITERATE, add_guards

_METHODS: dict[type, set[str]] = {
    str: {
        "capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdecimal",
        "isdigit", "islower", "isnumeric", "isspace", "isupper", "join", "lower", "lstrip",
        "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition",
        "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title",
        "upper",
    },
    list: {"count", "index"},
    tuple: {"count", "index"},
    dict: {"get", "items", "keys", "values"},
    LoopContext: {
        "changed", "cycle", "depth", "depth0", "first", "index", "index0", "last", "length",
        "nextitem", "previtem", "revindex", "revindex0",
    },
}  # fmt: skip
_OPERATORS = ("+", "-", "*", "/", "//", "%", "**")
_MAX_POWER_BITS = 4096
_WIDE_CONVERSION = re.compile(r"%\(|%[^A-Za-z%]*(?:\*|\d\d)")


class GenerationTag(Extension):
    """`{% generation %}` marks what a training run learns; here it only holds its contents."""

    tags = {"generation"}  # noqa: RUF012  (as the base class declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the contents."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The environment that chat templates run in; may be shared between threads."""

    intercepted_binops = frozenset(_OPERATORS)

    def __init__(self, now: Callable[[], datetime] = datetime.now) -> None:
        """`now` is the clock of `strftime_now`, local time."""
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[LoopControlExtension, GenerationTag],
            optimized=False,
        )
        self._rendering = threading.local()
        self.concat = self._concatenate_output  # type: ignore[method-assign]
        self.globals = allowed_globals(now)
        self._functions = frozenset(map(id, self.globals.values()))
        self.filters = {
            name: self._guarded(function)
            for name, function in allowed_filters(self._budget).items()
        }
        self.filters |= {
            ADMIT: lambda value: self._budget().admit(value),
            ITERATE: lambda value: self._budget().iterate(value),
            CONCATENATE: self._guarded(lambda values: joined_text(self._budget, values)),
        }
        tests: Mapping[str, Any] = TESTS
        self.tests = {name: self._timed(function) for name, function in tests.items()}

    def compile_guarded(self, source: str) -> jinja2.Template:
        """Compile `source`; raises whatever Jinja, or Python's compiler, raises for bad ones."""
        code = self.compile(add_guards(self.parse(source)))
        return jinja2.Template.from_code(self, code, self.make_globals(None))

    def render_within(
        self, template: jinja2.Template, budget: Budget, variables: dict[str, Any]
    ) -> str:
        """Render `template` on this thread under `budget`."""
        self._rendering.budget = budget
        try:
            return template.render(variables)
        finally:
            del self._rendering.budget

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may read `obj.attr`: by name, not by absence of known dangers."""
        if isinstance(obj, Namespace):
            return not attr.startswith("_")
        return any(attr in names for kind, names in _METHODS.items() if isinstance(obj, kind))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Look at the clock: a path like “0.0.0…” makes filters come here a million times."""
        self._budget().charge()
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> None:
        """`str.format` is not offered, so there is nothing to wrap."""
        return None

    def is_safe_callable(self, obj: Any) -> bool:
        """Whether a template may call `obj`: macros, allowed methods, our functions."""
        if isinstance(obj, Macro | LoopContext | Undefined) or id(obj) in self._functions:
            return True
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        return any(name in names for kind, names in _METHODS.items() if isinstance(owner, kind))

    def call(*args: Any, **kwargs: Any) -> Any:
        """Charge for a call and for its result."""
        # No names for the parameters: a template's keyword arguments must not collide with them.
        self, context, function, *arguments = args
        budget = self._budget()
        for argument in (*arguments, *kwargs.values()):
            budget.check(argument)  # a macro may put its arguments together, as `varargs`
        _check_growth(budget, function, arguments)
        parent = ImmutableSandboxedEnvironment.call
        return budget.admit(parent(self, context, function, *arguments, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute an operator after making sure that the result cannot be huge."""
        budget = self._budget()
        if operator == "*":
            _check_product(budget, left, right)
        elif operator == "**":
            _check_power(left, right)
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
        return budget.admit(super().call_binop(context, operator, left, right))

    def _budget(self) -> Budget:
        """The budget of the rendering on this thread.

        While compiling there is none; the AttributeError keeps Jinja from computing constants.
        """
        budget: Budget = self._rendering.budget
        return budget

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Charge for the result of a filter."""

        def guarded(*args: Any, **kwargs: Any) -> Any:
            return self._budget().admit(function(*args, **kwargs))

        return _marked_like(function, guarded)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Look at the clock before a test, whose result is but true or false."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._budget().charge()
            return function(*args, **kwargs)

        return _marked_like(function, timed)

    def _concatenate_output(self, parts: Iterable[str]) -> str:
        budget = self._budget()
        output: list[str] = []
        for part in parts:
            budget.charge(len(part))
            output.append(part)
        return "".join(output)


def _marked_like(function: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
    """Copy Jinja's mark of functions that want the context or the environment."""
    return update_wrapper(wrapper, getattr(function, "func", function), assigned=())


def _check_growth(budget: Budget, function: Any, arguments: list[Any]) -> None:
    """Look ahead where a method of str returns far more than it is given, or takes far longer."""
    text, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    if not isinstance(text, str):
        return
    if name == "replace" and len(arguments) >= 2:
        check_replacement(budget, text, str(arguments[0]), str(arguments[1]))
    elif name == "join" and arguments and hasattr(arguments[0], "__len__"):
        budget.foresee(len(text) * len(arguments[0]))
    elif name in ("strip", "lstrip", "rstrip") and arguments:
        check_stripped(arguments[0])


def _check_product(budget: Budget, left: Any, right: Any) -> None:
    for sequence, factor in ((left, right), (right, left)):
        if isinstance(sequence, str | list | tuple) and isinstance(factor, int):
            budget.foresee(len(sequence) * factor)


def _check_power(base: Any, exponent: Any) -> None:
    if isinstance(base, int) and isinstance(exponent, int):
        bits = base.bit_length() * max(0, exponent)
        if bits > _MAX_POWER_BITS:
            raise SecurityError("the power is too large")


def _check_format(form: str) -> None:
    """Refuse widths of two digits and more, and names, behind which a width could hide."""
    if _WIDE_CONVERSION.search(form):
        raise SecurityError("a format with a width or a name is not allowed")

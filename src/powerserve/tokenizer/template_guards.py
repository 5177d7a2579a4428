"""Rewrites a parsed template so that what cannot be intercepted at run time is charged as well."""

from __future__ import annotations

from typing import Any, TypeVar

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

# Names of the filters that the rewritten template calls. With a space no template can name them.
ADMIT = "admitted value"
ITERATE = "charged iteration"
CONCATENATE = "charged concatenation"

_MAX_NESTING = 32  # statements within statements; Jinja's compiler is quadratic in it
_NESTING = nodes.For | nodes.If | nodes.Macro | nodes.CallBlock | nodes.FilterBlock | nodes.With

AnyNode = TypeVar("AnyNode", bound=nodes.Node)


def add_guards(template: nodes.Template) -> nodes.Template:
    """Return `template` with guards; raises ValueError if statements are nested too deeply."""
    guarded: nodes.Template = _Guards().visit(template)
    return guarded


class _Guards(NodeTransformer):
    def __init__(self) -> None:
        self._depth = 0

    def generic_visit(self, node: AnyNode, *args: Any, **kwargs: Any) -> AnyNode:
        nesting = isinstance(node, _NESTING)
        self._depth += nesting
        if self._depth > _MAX_NESTING:
            raise ValueError(f"statements are nested more than {_MAX_NESTING} deep")
        super().generic_visit(node, *args, **kwargs)
        self._depth -= nesting
        return node

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, ITERATE)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), CONCATENATE)

    def visit_List(self, node: nodes.List) -> nodes.Expr:
        return _filtered(self.generic_visit(node), ADMIT)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:
        return _filtered(self.generic_visit(node), ADMIT)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return node if node.ctx == "store" else _filtered(node, ADMIT)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, ADMIT) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Expr:
        return _filtered(self.generic_visit(node), ADMIT)


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

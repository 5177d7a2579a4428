"""The computation of a model as pure data: see `ops` for the operations, `graph` for how they connect."""

from powerserve.graph.graph import Graph, Node, Value
from powerserve.graph.ops import ShapeError, Weight

__all__ = ["Graph", "Node", "ShapeError", "Value", "Weight"]

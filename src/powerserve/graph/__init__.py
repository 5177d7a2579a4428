"""The computation of a model as pure data: `ops` are the operations, `graph` connects them."""

from powerserve.graph.graph import Graph, Node, Value
from powerserve.graph.ops import ShapeError, Weight

__all__ = ["Graph", "Node", "ShapeError", "Value", "Weight"]

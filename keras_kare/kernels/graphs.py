"""Reading TensorFlow's graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

WHILES = frozenset({"StatelessWhile", "While"})
"""Operations that are loops."""


def ancestors(results: Sequence[tf.Tensor]) -> set[tf.Operation]:
    """Return all operations that some tensors are made of."""
    found: set[tf.Operation] = set()
    waiting = [t.op for t in results]
    while waiting:
        op = waiting.pop()
        if op not in found:
            found.add(op)
            waiting.extend(t.op for t in op.inputs)
    return found


def function_of(graph: Any, name: str) -> Any:
    """Return the traced body of a function that a graph calls; `None` where there is none.

    `_get_function` is private: TensorFlow shows the bodies of a graph's functions by no
    public name but a copy of the graph as a protocol buffer, constants and all.
    """
    while graph is not None:
        found = graph._get_function(name)
        if found is not None:
            return getattr(found, "graph", None)  # those of TensorFlow 1 have none
        graph = getattr(graph, "outer_graph", None)
    return None

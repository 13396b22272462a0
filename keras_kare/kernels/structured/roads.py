"""Reading a traced network: by which roads its variables reach the outputs.

A rule serves a variable `v` where every road from `v` to the outputs goes through an
`h` that the rule watched for `v`. That is a question about the graph, and the graph
answers it for all rows at once: one pass over the operations hands each variable's mark
from inputs to outputs, and takes `v`'s mark off at each `h` that was watched for it. A
mark that arrives at the outputs has found another road.

The walk errs on one side only. A mark passes through everything but questions of shape:
through branches that may never be taken, loops, nested functions, rounding and stopped
gradients, so that a variable is never called served for want of looking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare.kernels.structured.capture import Site, current_graph

_OF_SHAPE = frozenset({"Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike"})
"""Operations whose results do not depend on the values that they are given."""

_MOVING: dict[str, Callable[[tf.Operation], bool]] = {
    "ConcatV2": lambda op: _has_axis(op, -1),
    "DynamicPartition": lambda op: True,
    "DynamicStitch": lambda op: True,
    "GatherNd": lambda op: True,
    "GatherV2": lambda op: _has_axis(op, 2) and not op.get_attr("batch_dims"),
    "ParallelDynamicStitch": lambda op: True,
    "ReverseV2": lambda op: _has_axis(op, 1),
    "Roll": lambda op: _has_axis(op, 2),
    "ScatterNd": lambda op: True,
    "TensorScatterUpdate": lambda op: True,
}
"""Operations that may give a row another place, and whether this one does."""


def _has_axis(op: tf.Operation, number: int) -> bool:
    """Whether the axes of an operation, an input of it, may be that of the rows."""
    axes = tf.get_static_value(list(op.inputs)[number])
    if axes is None:
        return True
    rank = op.inputs[0].shape.rank
    found = {int(a) for a in np.ravel(axes)}
    return 0 in found or (rank is not None and -rank in found)


_OPAQUE = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})
"""Operations that run Python, which may read any variable."""


class Roads:
    """What was traced into the current graph since this was made.

    Args:
        variables: The variables to follow.
        x: The inputs, whose rows are followed, too.

    Attributes:
        misplaced: Of what was unproven, the variables of layers whose rows are not those
            of the outputs, or may stand in another order.
    """

    def __init__(self, variables: Sequence[keras.Variable], x: Any):
        self.variables = list(variables)
        self.misplaced: set[int] = set()
        self._x = [t for t in keras.tree.flatten(x) if tf.is_symbolic_tensor(t)]
        self.graph = current_graph()
        self._begin = 0 if self.graph is None else len(self.graph.get_operations())

    def operations(self) -> list[tf.Operation]:
        """Those that were traced since, in the order of their making."""
        return list(self.graph.get_operations()[self._begin :])

    def unproven(
        self,
        sites: Sequence[Site],
        f: tf.Tensor,
        gradients: Sequence[tf.Tensor | None],
    ) -> set[int]:
        """Identities of the variables that reach `f` by a road without a watched `h`.

        Args:
            sites: All that was watched, in this graph.
            f: The network's outputs.
            gradients: Of `f` by each site's `h`. Where there is none although `h` is on
                a road to `f`, the road leads through a custom gradient, which may hand
                gradients to variables directly.
        """
        if self.graph is None:
            return set()
        places = {id(v): i for i, v in enumerate(self.variables)}
        first = len(self.variables)  # marks of sites come after those of variables
        cuts: dict[Any, int] = {}
        starts: dict[Any, int] = {}
        claims = []
        for number, site in enumerate(sites):
            claimed = _union(1 << places[id(v)] for v in site.variables if id(v) in places)
            claims.append(claimed)
            for key in (site.h.ref(), *(t.ref() for t in site.through)):
                cuts[key] = cuts.get(key, 0) | claimed
            key = site.h.ref()
            starts[key] = starts.get(key, 0) | 1 << (first + number)
        marks = {t.op: mark for t, mark in self._marked()}
        everything = (1 << first) - 1
        rows, moved = 1 << (first + len(sites)), 2 << (first + len(sites))
        for t in self._x:
            starts[t.ref()] = starts.get(t.ref(), 0) | rows
        before_moves = 0

        def mark(t: tf.Tensor) -> int:
            found = marks.get(t.op, 0)
            if found or starts:
                key = t.ref()
                found = (found & ~cuts.get(key, 0)) | starts.get(key, 0)
            return found

        operations = self.operations()
        end = operations.index(f.op) + 1 if f.op in set(operations) else len(operations)
        for op in operations[:end]:  # the rest are gradients
            if op.type in _OF_SHAPE or op in marks:
                continue
            found = _union(mark(t) for t in op.inputs)
            if op.type in _OPAQUE:
                found |= everything
            if found & rows and op.type in _MOVING and self._moves(op, mark, rows):
                before_moves |= found
                found |= moved
            if op.type == "StopGradient":  # of what was watched nothing comes back
                found &= everything | rows | moved
            if found:
                marks[op] = found
        arrived = mark(f)
        other, misplaced = arrived & everything, 0
        for number, (site, gradient) in enumerate(zip(sites, gradients, strict=True)):
            inputs = _union(mark(t) for t in site.inputs)
            reordered = inputs & moved or before_moves >> (first + number) & 1
            if site.h.shape[0] != f.shape[0] or reordered:
                misplaced |= claims[number]
            # A use of the variable behind another use that was not watched.
            other |= claims[number] & inputs
            if gradient is None and arrived >> (first + number) & 1:
                other |= claims[number]
        self.misplaced = self._of(misplaced)
        return self._of(other | misplaced)

    def _of(self, marks: int) -> set[int]:
        return {id(v) for i, v in enumerate(self.variables) if marks >> i & 1}

    def _moves(self, op: tf.Operation, mark: Callable[[tf.Tensor], int], rows: int) -> bool:
        """Whether values of rows, not only their numbers, go through such an operation."""
        values = op.inputs[:1] if op.type in ("GatherV2", "GatherNd") else op.inputs
        floats = [t for t in values if t.dtype.is_floating and mark(t) & rows]
        return bool(floats) and _MOVING[op.type](op)

    def sources(self) -> list[tf.Tensor]:
        """The placeholders by which the variables enter this graph."""
        return [t for t, _ in self._marked()]

    def _marked(self) -> list[tuple[tf.Tensor, int]]:
        """These, and each variable's mark."""
        found, elsewhere = [], {}
        for i, v in enumerate(self.variables):
            value = v.value
            if not tf.is_symbolic_tensor(value):
                elsewhere[id(value.handle)] = 1 << i
            elif value.graph is self.graph:  # an argument
                found.append((value, 1 << i))
            else:
                elsewhere[id(_origin(value))] = 1 << i
        for outer, inner in getattr(self.graph, "captures", ()):
            if (key := id(_origin(outer))) in elsewhere:
                found.append((inner, elsewhere[key]))
        return found


def _union(marks: Iterable[int]) -> int:
    found = 0
    for mark in marks:
        found |= mark
    return found


def _origin(tensor: Any) -> Any:
    """What a tensor was before graphs around graphs captured it."""
    while isinstance(graph := getattr(tensor, "graph", None), tf.Graph):
        outer = next((a for a, b in getattr(graph, "captures", ()) if b is tensor), None)
        if outer is None:
            return tensor
        tensor = outer
    return tensor

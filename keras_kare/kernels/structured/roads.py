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
    """Tell whether the axes of an operation, an input of it, may be that of the rows."""
    axes = tf.get_static_value(list(op.inputs)[number])
    if axes is None:
        return True
    rank = op.inputs[0].shape.rank
    found = {int(a) for a in np.ravel(axes)}
    return 0 in found or (rank is not None and -rank in found)


_OPAQUE = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})
"""Operations that run Python, which may read any variable."""


class Roads:
    """The operations that were traced into the current graph since this was made.

    Args:
        variables: The variables to follow.
        x: The inputs, whose rows are followed, too.
    """

    def __init__(self, variables: Sequence[keras.Variable], x: Any):
        self.variables = list(variables)
        self._x = [t for t in keras.tree.flatten(x) if tf.is_symbolic_tensor(t)]
        self.graph = current_graph()
        self._begin = 0 if self.graph is None else len(self.graph.get_operations())

    def operations(self) -> list[tf.Operation]:
        """Return what was traced since, in the order of making."""
        return list(self.graph.get_operations()[self._begin :])

    def unproven(
        self,
        sites: Sequence[Site],
        f: tf.Tensor,
        gradients: Sequence[tf.Tensor | None],
    ) -> tuple[set[int], set[int]]:
        """Return the variables that reach `f` by a road without a watched `h`, by identity.

        Args:
            sites: All that was watched, in this graph.
            f: The network's outputs.
            gradients: Of `f` by each site's `h`. Where there is none although `h` is on
                a road to `f`, the road leads through a custom gradient, which may hand
                gradients to variables directly.

        Returns:
            All such variables; and those among them that are unproven since the rows of
            their layers are not those of the outputs, or may stand in another order.
        """
        if self.graph is None:
            return set(), set()
        marks = _Marks(self.variables, sites, self._x, self._marked())
        operations = self.operations()
        end = operations.index(f.op) + 1 if f.op in set(operations) else len(operations)
        for op in operations[:end]:  # the rest are gradients
            marks.hand_on(op)
        arrived = marks.of(f)
        other, misplaced = arrived & marks.everything, 0
        for number, (site, gradient) in enumerate(zip(sites, gradients, strict=True)):
            claimed, own = marks.claims[number], marks.of_site(number)
            inputs = _union(map(marks.of, site.inputs))
            reordered = inputs & marks.moved or marks.before_moves & own
            if site.h.shape[0] != f.shape[0] or reordered:
                misplaced |= claimed
            # A use of the variable behind another use that was not watched.
            other |= claimed & inputs
            if gradient is None and arrived & own:
                other |= claimed
        return self._of(other | misplaced), self._of(misplaced)

    def _of(self, marks: int) -> set[int]:
        return {id(v) for i, v in enumerate(self.variables) if marks >> i & 1}

    def sources(self) -> list[tf.Tensor]:
        """Return the placeholders by which the variables enter this graph."""
        return [t for t, _ in self._marked()]

    def _marked(self) -> list[tuple[tf.Tensor, int]]:
        """Return these placeholders, and each variable's mark."""
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


class _Marks:
    """The marks that reach each tensor of a graph, a bit of a number each.

    The lowest bits are of variables, in their order; then come sites, in theirs; then
    rows of the inputs, and rows that may have moved.

    Args:
        variables: The variables.
        sites: What was watched.
        x: The inputs.
        entering: The tensors by which variables enter, and each variable's mark.
    """

    def __init__(
        self,
        variables: Sequence[keras.Variable],
        sites: Sequence[Site],
        x: Sequence[tf.Tensor],
        entering: Iterable[tuple[tf.Tensor, int]],
    ):
        places = {id(v): i for i, v in enumerate(variables)}
        self._first, end = len(variables), len(variables) + len(sites)
        self.everything = (1 << self._first) - 1
        self.rows, self.moved = 1 << end, 2 << end
        self.before_moves = 0  # whatever has led to an operation that moves rows
        self.claims = [
            _union(1 << places[id(v)] for v in site.variables if id(v) in places)
            for site in sites
        ]
        self._at = {t.op: mark for t, mark in entering}
        self._cuts: dict[Any, int] = {}
        self._starts: dict[Any, int] = {}
        for number, (site, claimed) in enumerate(zip(sites, self.claims, strict=True)):
            for t in (site.h, *site.through):
                self._cuts[t.ref()] = self._cuts.get(t.ref(), 0) | claimed
            self._start(site.h, self.of_site(number))
        for t in x:
            self._start(t, self.rows)

    def _start(self, t: tf.Tensor, mark: int) -> None:
        self._starts[t.ref()] = self._starts.get(t.ref(), 0) | mark

    def of_site(self, number: int) -> int:
        """Return the mark of what was watched there."""
        return 1 << (self._first + number)

    def of(self, t: tf.Tensor) -> int:
        """Return all marks that reach a tensor."""
        found = self._at.get(t.op, 0)
        if found or self._starts:
            key = t.ref()
            found = (found & ~self._cuts.get(key, 0)) | self._starts.get(key, 0)
        return found

    def hand_on(self, op: tf.Operation) -> None:
        """Mark what an operation makes with what reaches its inputs."""
        if op.type in _OF_SHAPE or op in self._at:
            return
        found = _union(map(self.of, op.inputs))
        if op.type in _OPAQUE:
            found |= self.everything
        if found & self.rows and op.type in _MOVING and self._moves(op):
            self.before_moves |= found
            found |= self.moved
        if op.type == "StopGradient":  # of what was watched nothing comes back
            found &= self.everything | self.rows | self.moved
        if found:
            self._at[op] = found

    def _moves(self, op: tf.Operation) -> bool:
        """Tell whether values of rows, not only their numbers, go through an operation."""
        values = op.inputs[:1] if op.type in ("GatherV2", "GatherNd") else op.inputs
        floats = [t for t in values if t.dtype.is_floating and self.of(t) & self.rows]
        return bool(floats) and _MOVING[op.type](op)


def _union(marks: Iterable[int]) -> int:
    found = 0
    for mark in marks:
        found |= mark
    return found


def _origin(tensor: Any) -> Any:
    """Return what a tensor was before graphs around graphs captured it."""
    while isinstance(graph := getattr(tensor, "graph", None), tf.Graph):
        outer = next((a for a, b in getattr(graph, "captures", ()) if b is tensor), None)
        if outer is None:
            return tensor
        tensor = outer
    return tensor

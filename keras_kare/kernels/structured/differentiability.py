"""Operations whose derivative TensorFlow lacks, drops or gets wrong.

The NTK is made of first derivatives, so its own derivative goes through every
operation of the backward pass, too. For some of those TensorFlow has no gradient
and says so late, in words of its own; for others "no gradient" is registered, and
`tf.gradients` drops the term without a word. Both are read off the graph here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_kare.kernels.graphs import WHILES, function_of
from keras_kare.kernels.structured.operations import (
    APPROXIMATE,
    ASIDE,
    STOPS,
    ZERO,
    can_be_asked,
    has_gradient,
    stops_mean,
)

_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_BRANCHES = frozenset({"Case", "If", "StatelessCase", "StatelessIf"})

_Step = tuple[tf.Operation, list[int], list[int]]
"""An operation on a road, its inputs that are reached and its outputs that are wanted."""


def undifferentiable(
    operations: Sequence[tf.Operation],
    sources: Iterable[tf.Tensor],
    results: Iterable[tf.Tensor],
) -> list[str]:
    """List the operations that TensorFlow cannot differentiate between two sets of tensors.

    An operation counts if it depends on `sources` and `results` depend on it, both by
    tensors that have derivatives (floating, complex, variant), and if

    - no gradient of it is registered (`tf.gradients` would raise a `LookupError`, or
      an error of its own for these types and shapes), or
    - its gradient is registered as none, though its derivative is not zero
      (`tf.gradients` would drop the term in silence), or
    - its gradient is known to be wrong: that of a projective transform of images,
      and the stopped mean in `tf.nn.moments`.

    Bodies of functions, loops and branches are read likewise, each with the arguments
    that depend on `sources` and the results that are used. A custom gradient is
    believed: its operations stand in the graph and are read by themselves. It is only
    asked whether it raises an error, which leaves unused operations in the graph (never
    in that of a function). A `stop_gradient` that a network asks for is believed, too.

    An operation whose *first* derivative is dropped cuts the road to all gradients: it
    is found only if `results` hold the network's outputs, too.

    Args:
        operations: All operations of one graph in the order of their making, as
            `graph.get_operations()` returns them.
        sources: Tensors of that graph by which one wants to differentiate: variables'
            values or handles (`variable.handle` is captured as a placeholder), or
            what stands in for them.
        results: Tensors of that graph that are to be differentiated: the network's
            outputs, what layer rules watch, and the gradients by these or by variables.
            Products of them are the library's own; their custom gradients would take
            long to ask.

    Returns:
        One line for each operation found, `"Type (name)"` and what is the matter, in
        the order of the graph. Names tell the layer: they begin with its scope.
    """
    reached = {id(t) for t in sources}
    wanted = {id(t) for t in results}
    found: dict[str, None] = {}
    for step in _between(operations, reached, wanted):
        found.update(dict.fromkeys(_complaints(*step)))
        if not can_be_asked(*step):
            found[f"{_name(step[0])}: its custom gradient has no gradient"] = None
    return list(found)


def depends(
    operations: Sequence[tf.Operation],
    sources: Iterable[tf.Tensor],
    results: Iterable[tf.Tensor],
) -> bool:
    """Tell whether any of some tensors has a derivative by others that may not be zero.

    A road counts as in `undifferentiable`; of the other side of a kink (`ReluGrad`) no
    derivative knows. Without a road, the derivative is zero at all values.

    Args:
        operations, sources, results: As of `undifferentiable`.
    """
    reached = {id(t) for t in sources}
    _ahead(operations, reached)
    return any(id(t) in reached for t in results)


def _between(
    operations: Sequence[tf.Operation], reached: set[int], wanted: set[int]
) -> Iterator[_Step]:
    """Yield what lies between two sets of tensors (by identity), which are completed."""
    _ahead(operations, reached)
    _back(operations, wanted)
    for op in operations:
        into = _reached_inputs(op, reached)
        if not into or op.type in ZERO:
            continue
        out = [i for i, t in enumerate(op.outputs) if id(t) in wanted]
        if op.type not in STOPS:
            out = [i for i in out if id(op.outputs[i]) in reached]
        if out:
            yield op, into, out


def _complaints(op: tf.Operation, into: list[int], out: list[int]) -> Iterator[str]:
    if op.type in STOPS:
        if stops_mean(op):
            yield f"{_name(op)}: `tf.nn.moments` stops the gradient of the mean"
    elif op.type in APPROXIMATE:
        yield f"{_name(op)}: TensorFlow's gradient of it is an approximation"
    elif bodies := _bodies(op):
        for body in bodies:
            for found in body.complaints(into, out):
                yield f"{found}, in {_name(op)}"
    elif not has_gradient(op, into, out):
        yield f"{_name(op)}: TensorFlow has no gradient of it"


def _name(op: tf.Operation) -> str:
    return f"{op.type} ({op.name})"


# Roads


def _ahead(operations: Sequence[tf.Operation], reached: set[int]) -> None:
    """Add what depends on `reached`."""
    for op in operations:
        into = _reached_inputs(op, reached)
        if not into or op.type in ZERO or op.type in STOPS:
            continue
        outputs = op.outputs
        at: Iterable[int] = range(len(outputs))
        if bodies := _bodies(op):
            at = set().union(*(body.ahead(into) for body in bodies))
        # A function that was made for gradients returns more than it is asked for.
        at = [i for i in at if i < len(outputs)]
        reached.update(id(outputs[i]) for i in at if _has_derivatives(outputs[i]))


def _back(operations: Sequence[tf.Operation], wanted: set[int]) -> None:
    """Add what `wanted` depends on."""
    for op in reversed(operations):
        out = [i for i, t in enumerate(op.outputs) if id(t) in wanted]
        if not out or op.type in ZERO or op.type in STOPS:
            continue
        inputs = op.inputs
        at: Iterable[int] = _roads_into(op)
        if bodies := _bodies(op):
            at = set().union(*(body.back(out) for body in bodies))
        wanted.update(id(inputs[i]) for i in at if _has_derivatives(inputs[i]))


def _reached_inputs(op: tf.Operation, reached: set[int]) -> list[int]:
    inputs = op.inputs
    return [i for i in _roads_into(op) if id(inputs[i]) in reached]


def _roads_into(op: tf.Operation) -> Sequence[int]:
    """Return the numbers of the inputs by which an operation may be differentiated."""
    aside = ASIDE.get(op.type)
    every = range(len(op.inputs))
    return [i for i in every if i not in aside] if aside else every


def _has_derivatives(t: tf.Tensor) -> bool:
    kind = t.dtype
    return bool(kind.is_floating or kind.is_complex or kind in (tf.variant, tf.resource))


# Functions, branches, loops


def _bodies(op: tf.Operation) -> list[_Body]:
    """Return the graphs that an operation runs; most run none."""
    if op.type in _CALLS:
        return [_Body(op, function_of(op.graph, op.get_attr("f").name))]
    if op.type in WHILES:
        return [_Body(op, function_of(op.graph, op.get_attr("body").name), loops=True)]
    if op.type not in _BRANCHES:
        return []
    if op.type.endswith("If"):
        names = [op.get_attr(branch).name for branch in ("then_branch", "else_branch")]
    else:
        names = [branch.name for branch in op.get_attr("branches")]
    return [_Body(op, function_of(op.graph, name), skipped=1) for name in names]


@dataclass(frozen=True)
class _Body:
    """A graph that an operation runs on its inputs, but for the first `skipped`.

    Numbers are those of the operation's inputs and outputs. What one round of a loop
    returns enters the next one. Without a graph, all depends on all.
    """

    op: tf.Operation
    graph: Any
    skipped: int = 0
    loops: bool = False

    def ahead(self, into: Iterable[int]) -> set[int]:
        """Return the outputs that depend on these inputs."""
        if self.graph is None:
            return set(range(len(self.op.outputs)))
        at = set(into)
        while True:
            reached = self._inputs(at)
            _ahead(self.graph.get_operations(), reached)
            found = {i for i, t in enumerate(self.graph.outputs) if id(t) in reached}
            if not self.loops or found <= at:
                return at if self.loops else found
            at |= found

    def back(self, out: Iterable[int]) -> set[int]:
        """Return the inputs that these outputs depend on."""
        if self.graph is None:
            return set(range(len(self.op.inputs)))
        at = set(out)
        while True:
            wanted = self._outputs(at)
            _back(self.graph.get_operations(), wanted)
            inputs = enumerate(self.graph.inputs, self.skipped)
            found = {i for i, t in inputs if id(t) in wanted}
            if not self.loops or found <= at:
                return at if self.loops else found
            at |= found

    def complaints(self, into: Iterable[int], out: Iterable[int]) -> Iterator[str]:
        """Yield what is wrong between these inputs and these outputs."""
        if self.graph is None:
            yield "a function whose operations cannot be read"
            return
        if self.loops:
            into, out = self.ahead(into), self.back(out)
        operations = self.graph.get_operations()
        for step in _between(operations, self._inputs(into), self._outputs(out)):
            yield from _complaints(*step)

    def _inputs(self, at: Iterable[int]) -> set[int]:
        return {id(self.graph.inputs[i - self.skipped]) for i in at if i >= self.skipped}

    def _outputs(self, at: Iterable[int]) -> set[int]:
        return {id(self.graph.outputs[i]) for i in at}

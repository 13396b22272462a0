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

ZERO = frozenset(
    ["Ceil", "Floor", "FloorDiv", "OnesLike", "Rint", "Round", "Sign", "TruncateDiv", "ZerosLike"]
)
"""Their derivative is zero wherever it exists: no road leads through them."""

STOPS = frozenset({"PreventGradient", "StopGradient"})
"""The network's own word that a tensor is a constant: no road, either."""

ASIDE = {
    "FusedBatchNormGrad": (3, 4),
    "FusedBatchNormGradV2": (3, 4),
    "FusedBatchNormGradV3": (3, 4, 5),
    "LRNGrad": (2,),
}
"""Inputs without a gradient, since that of the other inputs includes theirs."""

APPROXIMATE = frozenset({"ImageProjectiveTransformV2", "ImageProjectiveTransformV3"})
"""Their registered gradient is the inverse transform, not the transpose."""

_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_BRANCHES = frozenset({"Case", "If", "StatelessCase", "StatelessIf"})
_LOOPS = frozenset({"StatelessWhile", "While"})

_known: dict[Any, bool] = {}


def undifferentiable(
    operations: Sequence[tf.Operation],
    sources: Iterable[tf.Tensor],
    results: Iterable[tf.Tensor],
) -> list[str]:
    """Operations that TensorFlow cannot differentiate between two sets of tensors.

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
    believed: its operations stand in the graph and are read by themselves. So is a
    `stop_gradient` that a network asks for.

    An operation whose *first* derivative is dropped cuts the road to all gradients: it
    is found only if `results` hold the network's outputs, too.

    Args:
        operations: All operations of one graph in the order of their making, as
            `graph.get_operations()` returns them.
        sources: Tensors of that graph by which one wants to differentiate: variables'
            values or handles (`variable.handle` is captured as a placeholder), or
            what stands in for them.
        results: Tensors of that graph that are to be differentiated.

    Returns:
        One line for each operation found, `"Type (name)"` and what is the matter, in
        the order of the graph. Names tell the layer: they begin with its scope.
    """
    reached = {id(t) for t in sources}
    wanted = {id(t) for t in results}
    return list(dict.fromkeys(_read(operations, reached, wanted)))


def _read(
    operations: Sequence[tf.Operation], reached: set[int], wanted: set[int]
) -> Iterator[str]:
    """Complete both sets of tensors (by identity), and describe what is between."""
    _ahead(operations, reached)
    _back(operations, wanted)
    for op in operations:
        into = [i for i, t in enumerate(op.inputs) if id(t) in reached]
        if not into or op.type in ZERO:
            continue
        out = [i for i, t in enumerate(op.outputs) if id(t) in wanted]
        if op.type not in STOPS:
            out = [i for i in out if id(op.outputs[i]) in reached]
        if out:
            yield from _complaints(op, into, out)


def _complaints(op: tf.Operation, into: list[int], out: list[int]) -> Iterator[str]:
    name = f"{op.type} ({op.name})"
    if op.type in STOPS:
        if "moments" in op.name:
            yield f"{name}: `tf.nn.moments` stops the gradient of the mean"
    elif op.type in APPROXIMATE:
        yield f"{name}: TensorFlow's gradient of it is an approximation"
    elif bodies := _bodies(op):
        for body in bodies:
            for found in body.read(into, out):
                yield f"{found}, in {name}"
    elif not _has_gradient(op, into, out):
        yield f"{name}: TensorFlow has no gradient of it"


# Roads


def _ahead(operations: Sequence[tf.Operation], reached: set[int]) -> None:
    """Add what depends on `reached`."""
    for op in operations:
        into = [i for i, t in enumerate(op.inputs) if id(t) in reached]
        if not into or op.type in ZERO or op.type in STOPS:
            continue
        outputs = op.outputs
        at: Iterable[int] = range(len(outputs))
        if bodies := _bodies(op):
            at = set().union(*(body.ahead(into) for body in bodies))
        reached.update(id(outputs[i]) for i in at if _has_derivatives(outputs[i]))


def _back(operations: Sequence[tf.Operation], wanted: set[int]) -> None:
    """Add what `wanted` depends on."""
    for op in reversed(operations):
        out = [i for i, t in enumerate(op.outputs) if id(t) in wanted]
        if not out or op.type in ZERO or op.type in STOPS:
            continue
        inputs = op.inputs
        at: Iterable[int] = range(len(inputs))
        if bodies := _bodies(op):
            at = set().union(*(body.back(out) for body in bodies))
        wanted.update(id(inputs[i]) for i in at if _has_derivatives(inputs[i]))


def _has_derivatives(t: tf.Tensor) -> bool:
    kind = t.dtype
    return bool(kind.is_floating or kind.is_complex or kind in (tf.variant, tf.resource))


# Functions, branches, loops


def _bodies(op: tf.Operation) -> list[_Body]:
    """The graphs that an operation runs; most run none."""
    if op.type in _CALLS:
        return [_Body(op, _function(op.graph, op.get_attr("f").name))]
    if op.type in _LOOPS:
        return [_Body(op, _function(op.graph, op.get_attr("body").name), loops=True)]
    if op.type not in _BRANCHES:
        return []
    if op.type.endswith("If"):
        names = [op.get_attr(branch).name for branch in ("then_branch", "else_branch")]
    else:
        names = [branch.name for branch in op.get_attr("branches")]
    return [_Body(op, _function(op.graph, name), skipped=1) for name in names]


def _function(graph: Any, name: str) -> Any:
    """The traced body of a function that a graph calls; None where there is none.

    `_get_function` is private: TensorFlow shows the bodies of a graph's functions by no
    public name but a copy of the graph as a protocol buffer, constants and all.
    """
    while graph is not None:
        found = graph._get_function(name)
        if found is not None:
            return getattr(found, "graph", None)  # those of TensorFlow 1 have none
        graph = getattr(graph, "outer_graph", None)
    return None


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
        """Outputs that depend on these inputs."""
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
        """Inputs that these outputs depend on."""
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

    def read(self, into: Iterable[int], out: Iterable[int]) -> Iterator[str]:
        """What is wrong between these inputs and these outputs."""
        if self.graph is None:
            yield "a function whose operations cannot be read"
            return
        if self.loops:
            into, out = self.ahead(into), self.back(out)
        operations = self.graph.get_operations()
        yield from _read(operations, self._inputs(into), self._outputs(out))

    def _inputs(self, at: Iterable[int]) -> set[int]:
        return {id(self.graph.inputs[i - self.skipped]) for i in at if i >= self.skipped}

    def _outputs(self, at: Iterable[int]) -> set[int]:
        return {id(self.graph.outputs[i]) for i in at}


# Single operations


def _has_gradient(op: tf.Operation, into: list[int], out: list[int]) -> bool:
    """Whether TensorFlow has the derivative of these outputs by these inputs.

    Operations of one kind are asked once. Where an error comes of types or shapes, each
    is asked for itself.
    """
    key = (op.type, tuple(into), tuple(out), tuple(t.dtype for t in op.inputs))
    try:
        if "_gradient_op_type" in op.node_def.attr:
            return _custom(op, into, out)
        if key not in _known:
            _known[key] = _differentiates(op, into, out)
    except LookupError:
        _known[key] = False
    except (NotImplementedError, TypeError, ValueError):
        return False
    return _known[key]


def _differentiates(op: tf.Operation, into: list[int], out: list[int]) -> bool:
    """Ask `tf.gradients`, of a copy of the operation in a graph of its own."""
    attributes = op.node_def.attr
    with tf.Graph().as_default() as scratch:
        inputs = [_stand_in(t, i in into) for i, t in enumerate(op.inputs)]
        copy = scratch.create_op(
            op.type,
            inputs,
            [t.dtype for t in op.outputs],
            attrs={k: v for k, v in attributes.items() if not k.startswith("_")},
        )
        found = tf.gradients(
            [copy.outputs[i] for i in out],
            [inputs[i] for i in into],
            grad_ys=[_stand_in(op.outputs[i], True) for i in out],
        )
    missing = {i for i, g in zip(into, found, strict=True) if g is None}
    return missing <= set(ASIDE.get(op.type, ()))


def _custom(op: tf.Operation, into: list[int], out: list[int]) -> bool:
    """Whether a custom gradient can be taken at all; what it says is believed.

    It is bound to its own graph, and has to be asked there. One that recomputes
    (`keras.remat`) has no derivative of its own.
    """
    with op.graph.as_default():
        tf.gradients([op.outputs[i] for i in out], [op.inputs[i] for i in into])
    return True


def _stand_in(t: tf.Tensor, variable: bool) -> tf.Tensor:
    """A placeholder; a constant, where gradients may ask for its value."""
    value = None if variable else tf.get_static_value(t)
    if value is not None:
        return tf.constant(value, t.dtype)
    return tf.compat.v1.placeholder(t.dtype, t.shape)

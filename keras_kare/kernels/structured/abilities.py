"""What TensorFlow can do with a traced network, read off its graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_kare.kernels.structured.operations import is_custom

LOOPS = ("While", "StatelessWhile", "If", "StatelessIf", "Case", "StatelessCase")
UNEVEN = ("DynamicPartition", "DynamicStitch", "ParallelDynamicStitch", "Where")
"""Operations between which a part of the rows goes, which may be none of them.

Vectorised gradients of none have no shape, and fail."""

CALLS = ("PartitionedCall", "StatefulPartitionedCall")


@dataclass(frozen=True)
class Abilities:
    """The ways of differentiating that work on a graph.

    Attributes:
        in_bodies: Kinds of the operations in bodies of functions, branches and loops.
        forward_mode: Derivatives forwards. They end at loops, lose what functions read by
            themselves, and know nothing of custom gradients.
        vectorizes: The plain Jacobian of all rows at once.
        loops: Whether there are loops, or branches. Gradients of all outputs at once take
            long to trace through these.
    """

    in_bodies: frozenset[str]
    forward_mode: bool
    vectorizes: bool
    loops: bool

    @classmethod
    def of(
        cls,
        definition: Any,
        operations: list[tf.Operation],
        backwards: list[tf.Operation],
    ) -> Abilities:
        """Read them off a graph, function bodies included.

        Args:
            definition: The graph's `GraphDef`.
            operations: Those of its operations that the outputs are made of.
            backwards: Those that their gradients are made of.
        """
        nodes = _bodies(definition, operations)
        in_bodies = frozenset(node.op for node in nodes)
        kinds = {op.type for op in operations} | in_bodies
        grouped = any(map(_is_grouped, operations)) or any(
            "_XlaMustCompile" in n.attr and n.attr["_XlaMustCompile"].b for n in nodes
        )
        custom = any(map(is_custom, operations))
        # A rematerialised loop is run again backwards.
        loops = kinds & set(LOOPS)
        again = custom and (loops or any(op.type in LOOPS for op in backwards))
        return cls(
            in_bodies,
            forward_mode=not loops and not kinds & set(CALLS) and not custom,
            vectorizes=not grouped and not kinds & set(UNEVEN) and not again,
            loops=bool(loops),
        )


def _bodies(definition: Any, operations: list[tf.Operation]) -> list[Any]:
    """Return the nodes of all functions that these operations call, directly or not."""
    library = {f.signature.name: f.node_def for f in definition.library.function}
    calling = [op for op in operations if op.type in LOOPS or op.type in CALLS]
    waiting = [name for op in calling for name in _called(op.node_def)]
    seen: set[str] = set()
    nodes = []
    while waiting:
        name = waiting.pop()
        if name not in seen and name in library:
            seen.add(name)
            nodes.extend(library[name])
            waiting.extend(called for node in library[name] for called in _called(node))
    return nodes


def _called(node: Any) -> list[str]:
    """Return the names of the functions among the attributes of a node."""
    values = node.attr.values()
    listed = [f.name for value in values for f in value.list.func]
    return [value.func.name for value in values if value.func.name] + listed


def _is_grouped(op: Any) -> bool:
    """Tell whether this is a convolution over groups of channels.

    TensorFlow cannot vectorise it on a CPU, where Keras compiles it by XLA.
    """
    if op.type in CALLS:
        compiled = op.node_def.attr.get("_XlaMustCompile")
        return compiled is not None and bool(compiled.b)
    if op.type not in ("Conv2D", "Conv3D"):
        return False
    first = op.get_attr("data_format").decode().startswith("NC")
    channels = op.inputs[0].shape[1 if first else -1]
    return channels != op.inputs[1].shape[-2]

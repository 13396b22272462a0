"""What TensorFlow can do with a traced network, read off its graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

LOOPS = ("While", "StatelessWhile", "If", "StatelessIf", "Case", "StatelessCase")


@dataclass(frozen=True)
class Abilities:
    """What works on a graph.

    Attributes:
        forward_mode: Derivatives forwards, which end at loops; those of a function would
            also stay in that function.
        vectorizes: The plain Jacobian of all rows at once.
    """

    forward_mode: bool
    vectorizes: bool

    @classmethod
    def of(cls, definition: Any, operations: list[tf.Operation]) -> Abilities:
        """Of a graph, function bodies included.

        Args:
            definition: The graph's `GraphDef`.
            operations: Those of its operations that count.
        """
        nodes = [n for f in definition.library.function for n in f.node_def]
        kinds = {op.type for op in operations} | {node.op for node in nodes}
        calls = any(kind.endswith("PartitionedCall") for kind in kinds)
        grouped = any(map(_is_grouped, operations)) or any(
            "_XlaMustCompile" in n.attr and n.attr["_XlaMustCompile"].b for n in nodes
        )
        return cls(
            forward_mode=not calls and not any(kind in LOOPS for kind in kinds),
            vectorizes=not grouped,
        )


def _is_grouped(op: Any) -> bool:
    """Whether this is a convolution over groups of channels.

    TensorFlow cannot vectorise it on a CPU, where Keras compiles it by XLA.
    """
    if op.type.endswith("PartitionedCall"):
        compiled = op.node_def.attr.get("_XlaMustCompile")
        return compiled is not None and bool(compiled.b)
    if op.type not in ("Conv2D", "Conv3D"):
        return False
    first = op.get_attr("data_format").decode().startswith("NC")
    channels = op.inputs[0].shape[1 if first else -1]
    return channels != op.inputs[1].shape[-2]

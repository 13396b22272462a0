"""What TensorFlow knows of the derivatives of single operations."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

ZERO = frozenset({"Ceil", "Floor", "FloorDiv", "OnesLike", "Rint", "Round", "Sign"})
ZERO |= {"TruncateDiv", "ZerosLike"}
"""Their derivative is zero wherever it exists: no road leads through them."""

STOPS = frozenset({"PreventGradient", "StopGradient"})
"""The network's own word that a tensor is a constant: no road, either."""

ASIDE = {
    "FusedBatchNormGrad": (3, 4),
    "FusedBatchNormGradV2": (3, 4),
    "FusedBatchNormGradV3": (3, 4, 5),
    "LeakyReluGrad": (1,),
    "LRNGrad": (2,),
    "MaxPool3DGrad": (0, 1),
    "MaxPoolGrad": (0, 1),
    "MaxPoolGradV2": (0, 1),
    "Relu6Grad": (1,),
    "ReluGrad": (1,),
    "ResizeBicubicGrad": (1,),
    "ResizeBilinearGrad": (1,),
    "ScaleAndTranslateGrad": (1,),
}
"""Inputs that tell a size only, or which side of a kink, or are functions of other inputs.

The first two have no gradient but zero, and of the last the gradient by others says all.
"""

APPROXIMATE = frozenset({"ImageProjectiveTransformV2", "ImageProjectiveTransformV3"})
"""Their registered gradient is the inverse transform, not the transpose."""

KNOWN = {
    **dict.fromkeys(["AddV2", "BiasAdd", "MatMul", "Maximum", "Mul", "RealDiv"], (0, 1)),
    **dict.fromkeys(["ReluGrad", "SigmoidGrad", "Sub", "TanhGrad"], (0, 1)),
    **dict.fromkeys(["BiasAddGrad", "Erfc", "Exp", "Identity", "Log", "Mean"], (0,)),
    **dict.fromkeys(["Neg", "Pack", "Pad", "Relu", "Reshape", "Rsqrt", "Sigmoid"], (0,)),
    **dict.fromkeys(["Softplus", "Sqrt", "Square", "StridedSlice", "Sum", "Tanh"], (0,)),
    **dict.fromkeys(["Tile", "Transpose"], (0,)),
}
"""Inputs by which TensorFlow has a derivative for sure, of what most networks are made of.

To ask for each takes a good part of the time of planning; `tests/test_differentiability.py`
asks once.
"""

_differentiable: set[Any] = set()


def has_gradient(op: tf.Operation, into: list[int], out: list[int]) -> bool:
    """Tell whether TensorFlow has the derivative of these outputs by these inputs.

    Operations of one kind are asked until one has. Custom gradients always have.
    """
    if set(into) <= set(KNOWN.get(op.type, ())):
        return True
    key = (op.type, tuple(into), tuple(out), tuple(t.dtype for t in op.inputs))
    if key not in _differentiable and not is_custom(op):
        try:
            if not _differentiates(op, into, out):
                return False
        except (LookupError, NotImplementedError, TypeError, ValueError):
            return False
        _differentiable.add(key)
    return True


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
    return all(g is not None for g in found)


def is_custom(op: tf.Operation) -> bool:
    """Tell whether this ends a function with its own gradient (`tf.custom_gradient`)."""
    return op.type == "IdentityN" and "_gradient_op_type" in op.node_def.attr


def can_be_asked(op: tf.Operation, into: list[int], out: list[int]) -> bool:
    """Tell whether a custom gradient raises no error; what it returns is believed.

    It is bound to its own graph and has to be asked there. One that recomputes
    (`keras.remat`) has no derivative of its own.
    """
    if not is_custom(op):
        return True
    outputs = [op.outputs[i] for i in out]
    try:
        with op.graph.as_default():
            ones = [tf.ones_like(t) for t in outputs]
            tf.gradients(outputs, [op.inputs[i] for i in into], grad_ys=ones)
    except Exception:  # of any kind: the gradient is its author's Python
        return False
    return True


def _stand_in(t: tf.Tensor, variable: bool) -> tf.Tensor:
    """Return a placeholder; a constant, where gradients may ask for its value."""
    value = None if variable else tf.get_static_value(t)
    if value is not None:
        return tf.constant(value, t.dtype)
    return tf.compat.v1.placeholder(t.dtype, t.shape)


def stops_mean(op: tf.Operation) -> bool:
    """Tell whether this is the stop in `tf.nn.moments`."""
    scope = op.name.split("/")[-2:-1]
    squared = any(user.type == "SquaredDifference" for user in op.outputs[0].consumers())
    return squared and any(name.startswith("moments") for name in scope)

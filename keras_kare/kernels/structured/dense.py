"""`Dense` and `EinsumDense`, on inputs of any rank."""

from __future__ import annotations

import math
import string
from typing import Any

import keras
import tensorflow as tf

from keras_kare.kernels.factors import Factor, FullFactor, Layout, OuterFactor, length
from keras_kare.kernels.structured.affine import affine
from keras_kare.kernels.structured.registry import register_rule
from keras_kare.kernels.structured.rule import (
    LayerRule,
    MakeFactor,
    Watcher,
    activate,
    add_bias,
    present,
)


class DenseRule(LayerRule):
    """The rule of `h = a W + bias`: gradients are outer products of `a` and `∂f/∂h`."""

    def call(
        self, layer: keras.layers.Layer, watch: Watcher, inputs: Any, training: Any = None
    ) -> Any:
        h = add_bias(keras.ops.matmul(inputs, layer.kernel), layer.bias)
        factor = affine(layer.bias, tf.convert_to_tensor(inputs))
        return activate(layer, watch(h, present(layer.kernel, layer.bias), factor))


class EinsumDenseRule(LayerRule):
    """The rule of `h = einsum(equation, a, W) + bias`.

    Axes of the kernel are contracted (the inputs' too), features (the outputs' too) or
    groups (those of both, too); the other axes of the inputs are positions.
    """

    def accepts(self, layer: keras.layers.Layer) -> bool:
        return super().accepts(layer) and _Axes.of(layer.equation) is not None

    def call(
        self, layer: keras.layers.Layer, watch: Watcher, inputs: Any, training: Any = None
    ) -> Any:
        axes = _Axes.of(layer.equation, len(inputs.shape))
        assert axes is not None
        h = keras.ops.einsum(layer.equation, inputs, layer.kernel)
        x = tf.convert_to_tensor(inputs)
        if layer.bias is not None:
            h = keras.ops.add(h, layer.bias)
            h = watch(h, [layer.bias], _broadcast_bias(layer.bias))
        return activate(layer, watch(h, [layer.kernel], axes.factor(x, layer.kernel)))


class _Axes:
    """The parts that the labels of an equation play; `...` stands for positions."""

    def __init__(self, inputs: str, kernel: str, outputs: str):
        self.inputs, self.kernel, self.outputs = inputs, kernel, outputs
        self.groups = [x for x in kernel if x in inputs and x in outputs]
        self.contracted = [x for x in kernel if x in inputs and x not in outputs]
        self.features = [x for x in kernel if x not in inputs]
        self.others = [x for x in inputs[1:] if x not in kernel]

    @classmethod
    def of(cls, equation: str, rank: int | None = None) -> _Axes | None:
        """Read an equation; `None` where an operand's axis is summed, or rows are none."""
        left, outputs = equation.replace(" ", "").split("->")
        inputs, kernel = left.split(",")
        if "..." in inputs:
            free = [x for x in string.ascii_letters if x not in left]
            letters = len(inputs.replace("...", ""))
            dots = "".join(free[: (letters + 2 if rank is None else rank) - letters])
            inputs, outputs = inputs.replace("...", dots), outputs.replace("...", dots)
        axes = cls(inputs, kernel, outputs)
        rows_first = inputs[0] == outputs[0] and inputs[0] not in kernel
        repeated = any(len(set(x)) < len(x) for x in (inputs, kernel, outputs))
        summed = [x for x in axes.others if x not in outputs]
        summed += [x for x in axes.features if x not in outputs]
        made_up = [x for x in outputs if x not in inputs + kernel]
        return None if repeated or summed or made_up or not rows_first else axes

    def factor(self, x: tf.Tensor, kernel: keras.Variable) -> MakeFactor:
        size = dict(zip(self.kernel, kernel.shape, strict=True))
        kinds = (self.groups, self.contracted, self.features)
        groups, p, q = (math.prod(size[label] for label in kind) for kind in kinds)
        order = [label for kind in kinds for label in kind]
        layout = Layout(
            tuple(size[label] for label in order),
            tuple(order.index(label) for label in self.kernel),
        )

        def factor(variables: list[keras.Variable], gradients: tf.Tensor) -> Factor:
            rows, steps = length(x), -1
            fixed = [x.shape[self.inputs.index(label)] for label in self.others]
            if None not in fixed:
                steps, rows = math.prod(fixed), -1
            to_a = [*self.groups, *self.others, *self.contracted]
            a = tf.transpose(x, [0, *(self.inputs.index(label) for label in to_a)])
            a = tf.reshape(tf.cast(a, gradients.dtype), (rows, groups, steps, p))
            count = gradients.shape[1]
            place = {label: i + 1 for i, label in enumerate(self.outputs)}
            b = tf.transpose(
                gradients,
                [
                    0,
                    *(place[label] for label in (*self.groups, *self.others)),
                    1,
                    *(place[label] for label in self.features),
                ],
            )
            b = tf.reshape(b, (rows, groups, steps, count, q))
            return OuterFactor(a, b, layout=layout)

        return factor


def _broadcast_bias(bias: keras.Variable) -> MakeFactor:
    """Make the factor of a bias that is the same along some axes."""

    def factor(variables: list[keras.Variable], gradients: tf.Tensor) -> Factor:
        shape = (1,) * (gradients.shape.rank - 1 - len(bias.shape)) + tuple(bias.shape)
        same = [i + 1 for i, size in enumerate(shape) if size == 1 and i > 0]
        return FullFactor(tf.reduce_sum(gradients, axis=same))

    return factor


register_rule(keras.layers.Dense, DenseRule())
register_rule(keras.layers.EinsumDense, EinsumDenseRule())

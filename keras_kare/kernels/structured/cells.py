"""`SimpleRNNCell`, `LSTMCell` and `GRUCell`: one time step, and what `U` met in it."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_kare.kernels.factors import Factor, FullFactor, Layout, OuterFactor, positions
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

Tensors = tuple[tf.Tensor, ...]


class CellRule(LayerRule):
    """The rule of a cell, `z = x W + bias + h U`, called for one step or a sequence."""

    def call(
        self,
        layer: keras.layers.Layer,
        watch: Watcher,
        inputs: Any,
        states: Any,
        training: Any = False,
    ) -> Any:
        if training:
            return NotImplemented
        nested = isinstance(states, list | tuple)
        met: list[tf.Tensor] = []
        through: list[tf.Tensor] = []
        entering = self.entering(layer, watch, inputs, met, through)
        own = tuple(states) if nested else (states,)
        output, new, met[:], through[:] = self.step(
            layer, entering, recurrent_kernel(layer, entering.dtype), own
        )
        return output, list(new) if nested else new[0]

    def entering(
        self,
        cell: Any,
        watch: Watcher,
        x: Any,
        met: list[tf.Tensor],
        through: list[tf.Tensor],
    ) -> tf.Tensor:
        """Compute what is added to products with `U`, watched for all of its variables.

        Args:
            cell: The cell.
            watch: See `Watcher`.
            x: `(n, ..., d)`, of any number of time steps.
            met: What `step` says that `U` met will be there later, `(n, ..., units)`.
            through: The tensors by which `U` enters will be there later.

        Returns:
            `x W + bias`; with one more axis where a cell needs it.
        """
        z = add_bias(keras.ops.matmul(x, cell.kernel), cell.bias)
        z = watch(z, present(cell.kernel, cell.bias), affine(cell.bias, x))
        return watch(z, [cell.recurrent_kernel], self.by_states(cell, met), through)

    def by_states(self, cell: Any, met: list[tf.Tensor]) -> MakeFactor:
        """Make factors of `U`, which is multiplied with the states that `met` will hold."""
        return lambda variables, gradients: affine(None, met[0])(variables, gradients)

    @abc.abstractmethod
    def step(
        self,
        cell: keras.layers.Layer,
        entering: tf.Tensor,
        u: tf.Tensor,
        states: Tensors,
    ) -> tuple[tf.Tensor, Tensors, Tensors, Tensors]:
        """Run one time step.

        Returns:
            The output; the new states; what `u` met; the products with `u`.
        """


class SimpleRNNCellRule(CellRule):
    """The rule of `h' = activation(x W + h U + bias)`."""

    def step(self, cell: Any, entering: Any, u: Any, states: Tensors) -> Any:
        product = tf.matmul(states[0], u)
        output = activate(cell, entering + product)
        return output, (output,), (states[0],), (product,)


class LSTMCellRule(CellRule):
    """The rule of four gates of `x W + h U + bias`: input, forget, cell, output."""

    def step(self, cell: Any, entering: Any, u: Any, states: Tensors) -> Any:
        h, c = states
        product = tf.matmul(h, u)
        z = tf.split(entering + product, 4, axis=1)
        enter, forget, out = (cell.recurrent_activation(z[i]) for i in (0, 1, 3))
        c = forget * c + enter * cell.activation(z[2])
        output = out * cell.activation(c)
        return output, (output, c), (h,), (product,)


class GRUCellRule(CellRule):
    """The rule of gates `z`, `r` and a candidate; `r` applies before or after `U`."""

    def entering(self, cell: Any, watch: Watcher, x: Any, met: Any, through: Any) -> Any:
        if not cell.reset_after:
            return super().entering(cell, watch, x, met, through)
        # `x W` and zeros, with a bias each: (n, ..., 2, 3 units).
        from_x = keras.ops.matmul(x, cell.kernel)
        both = tf.stack([from_x, tf.zeros_like(from_x)], axis=-2)
        if cell.bias is not None:
            both = keras.ops.add(both, cell.bias)
            both = watch(both, [cell.bias], _over_time)
        both = watch(both, [cell.kernel], _one_of(0, lambda: x))
        return watch(both, [cell.recurrent_kernel], _one_of(1, lambda: met[0]), through)

    def by_states(self, cell: Any, met: list[tf.Tensor]) -> MakeFactor:
        def factor(variables: list[keras.Variable], gradients: tf.Tensor) -> Factor:
            b = positions(gradients, lead=2, groups=3)
            h, after = (positions(tf.cast(t, b.dtype)) for t in met)
            layout = Layout((3, cell.units, cell.units), (1, 0, 2))
            return OuterFactor(tf.concat([h, h, after], axis=1), b, layout=layout)

        return factor

    def step(self, cell: Any, entering: Any, u: Any, states: Tensors) -> Any:
        h, units = states[0], cell.units
        if cell.reset_after:
            x_parts = tf.split(entering[:, 0], 3, axis=1)
            products = [tf.matmul(h, u)]
            h_parts = tf.split(entering[:, 1] + products[0], 3, axis=1)
            reset = cell.recurrent_activation(x_parts[1] + h_parts[1])
            new, met = reset * h_parts[2], [h]
        else:
            x_parts = tf.split(entering, 3, axis=1)
            products = [tf.matmul(h, u[:, : 2 * units])]
            h_parts = tf.split(products[0], 2, axis=1)
            reset = cell.recurrent_activation(x_parts[1] + h_parts[1])
            met = [h, reset * h]
            products.append(tf.matmul(met[1], u[:, 2 * units :]))
            new = products[1]
        candidate = cell.activation(x_parts[2] + new)
        update = cell.recurrent_activation(x_parts[0] + h_parts[0])
        output = update * h + (1 - update) * candidate
        return output, (output,), tuple(met), tuple(products)


def _over_time(variables: list[keras.Variable], gradients: tf.Tensor) -> Factor:
    """Make the factor of a bias `(2, 3 units)` that is added at every step."""
    steps = list(range(2, gradients.shape.rank - 2))
    return FullFactor(tf.reduce_sum(gradients, axis=steps))


def _one_of(index: int, a: Callable[[], Any]) -> MakeFactor:
    """Make the factor of a kernel whose result is one of two that were stacked."""

    def factor(variables: list[keras.Variable], gradients: tf.Tensor) -> Factor:
        return affine(None, a())(variables, gradients[..., index, :])

    return factor


def recurrent_kernel(cell: keras.layers.Layer, dtype: tf.DType) -> tf.Tensor:
    """Return `U` of a cell in this type."""
    return tf.cast(tf.convert_to_tensor(cell.recurrent_kernel), dtype)


CELLS: dict[type, CellRule] = {
    keras.layers.SimpleRNNCell: SimpleRNNCellRule(),
    keras.layers.LSTMCell: LSTMCellRule(),
    keras.layers.GRUCell: GRUCellRule(),
}
for _cell, _rule in CELLS.items():
    register_rule(_cell, _rule)

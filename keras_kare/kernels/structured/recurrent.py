"""`SimpleRNN`, `LSTM`, `GRU` and `RNN` of their cells: unrolled, exact.

Inside TensorFlow's loop nothing can be watched. Unrolled, a recurrent layer is its
cell, called once a time step; the cells' rules do the rest. Masks, directions and
states stay Keras' own business.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_kare.kernels.factors import Factor, FullFactor, Layout, OuterFactor, positions
from keras_kare.kernels.structured.affine import affine
from keras_kare.kernels.structured.registry import register_rule
from keras_kare.kernels.structured.rule import (
    LayerRule,
    Watch,
    activate,
    add_bias,
    present,
)

_KERAS_CALL = keras.layers.RNN.call


class RecurrentRule(LayerRule):
    """Runs the layer unrolled, so that the rules of its cells see every step."""

    def accepts(self, layer: keras.layers.Layer) -> bool:
        cells = getattr(layer.cell, "cells", [layer.cell])
        known = tuple(type(cell) in _CELLS for cell in cells)
        return super().accepts(layer) and all(known)

    def call(
        self,
        layer: keras.layers.Layer,
        watch: Watch,
        sequences: Any,
        initial_state: Any = None,
        mask: Any = None,
        training: Any = False,
    ) -> Any:
        if training:
            return NotImplemented
        if sequences.shape[1] is None:
            raise ValueError(
                f"The kernel unrolls {layer.name!r}, so the length of its sequences must "
                "be known: give it in the signature of your `tf.function`, or use "
                '`method="jacobian"`. Received: sequences of shape '
                f"{tuple(sequences.shape)}"
            )
        # Unrolled backwards, Keras blanks the outputs of masked steps in the wrong order.
        blanks = getattr(layer, "zero_output_for_mask", False) and mask is not None
        backwards = blanks and layer.go_backwards and layer.return_sequences
        with _unrolled(layer, blanks and not backwards):
            found = _KERAS_CALL(layer, sequences, initial_state, mask, False)
        return _blanked(found, mask) if backwards else found


def _blanked(found: Any, mask: Any) -> Any:
    """The outputs of a layer that runs backwards, zero where a step is masked."""
    several = isinstance(found, list | tuple)
    outputs, *states = found if several else [found]
    mask = mask[0] if isinstance(mask, list | tuple) else mask
    backwards = tf.reverse(tf.cast(mask, "bool"), [1])[:, :, None]
    outputs = tf.where(backwards, outputs, tf.zeros_like(outputs))
    return type(found)([outputs, *states]) if several else outputs


@contextlib.contextmanager
def _unrolled(layer: keras.layers.Layer, blanks: bool) -> Iterator[None]:
    before = {"unroll": layer.unroll}
    if hasattr(layer, "zero_output_for_mask"):
        before["zero_output_for_mask"] = layer.zero_output_for_mask
        layer.zero_output_for_mask = blanks
    layer.unroll = True
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(layer, name, value)


class SimpleRNNCellRule(LayerRule):
    """`h' = activation(x W + h U + bias)`."""

    def call(
        self,
        layer: keras.layers.Layer,
        watch: Watch,
        sequence: Any,
        states: Any,
        training: Any = False,
    ) -> Any:
        if training:
            return NotImplemented
        nested = isinstance(states, list | tuple)
        z = _pre_activation(layer, watch, sequence, states[0] if nested else states)
        output = activate(layer, z)
        return output, [output] if nested else output


class LSTMCellRule(LayerRule):
    """Four gates of one pre-activation `x W + h U + bias`: input, forget, cell, output."""

    def call(
        self,
        layer: keras.layers.Layer,
        watch: Watch,
        inputs: Any,
        states: Any,
        training: Any = False,
    ) -> Any:
        if training:
            return NotImplemented
        h, c = states
        z = tf.split(_pre_activation(layer, watch, inputs, h), 4, axis=1)
        enter, forget, out = (layer.recurrent_activation(z[i]) for i in (0, 1, 3))
        c = forget * c + enter * layer.activation(z[2])
        h = out * layer.activation(c)
        return h, [h, c]


def _pre_activation(
    layer: keras.layers.Layer, watch: Watch, x: Any, h: tf.Tensor
) -> tf.Tensor:
    """`x W + h U + bias`, watched for all three."""
    z = keras.ops.matmul(x, layer.kernel) + keras.ops.matmul(h, layer.recurrent_kernel)
    z = add_bias(z, layer.bias)
    by_input = affine(layer.bias, x)
    z = watch(z, present(layer.kernel, layer.bias), by_input)
    return watch(z, [layer.recurrent_kernel], affine(None, h))


class GRUCellRule(LayerRule):
    """Gates `z`, `r` and a candidate; `r` applies before or after the product by `U`."""

    def call(
        self,
        layer: keras.layers.Layer,
        watch: Watch,
        inputs: Any,
        states: Any,
        training: Any = False,
    ) -> Any:
        if training:
            return NotImplemented
        nested = isinstance(states, list | tuple)
        h = states[0] if nested else states
        gates = self._after if layer.reset_after else self._before
        update, candidate = gates(layer, watch, inputs, h)
        new = update * h + (1 - update) * candidate
        return new, [new] if nested else new

    def _after(
        self, layer: keras.layers.Layer, watch: Watch, x: Any, h: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        from_x = keras.ops.matmul(x, layer.kernel)
        from_h = keras.ops.matmul(h, layer.recurrent_kernel)
        both = tf.stack([from_x, from_h], axis=1)  # (n, 2, 3 units)
        if layer.bias is not None:
            both = keras.ops.add(both, layer.bias)
            both = watch(both, [layer.bias], lambda variables, g: FullFactor(g))
        both = watch(both, [layer.kernel], _one_of(0, x))
        both = watch(both, [layer.recurrent_kernel], _one_of(1, h))
        x_update, x_reset, x_new = tf.split(both[:, 0], 3, axis=1)
        h_update, h_reset, h_new = tf.split(both[:, 1], 3, axis=1)
        reset = layer.recurrent_activation(x_reset + h_reset)
        candidate = layer.activation(x_new + reset * h_new)
        return layer.recurrent_activation(x_update + h_update), candidate

    def _before(
        self, layer: keras.layers.Layer, watch: Watch, x: Any, h: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        units, met = layer.units, [h, h]
        through: list[tf.Tensor] = []

        def recurrent(variables: list[keras.Variable], gradients: tf.Tensor) -> Factor:
            a = tf.cast(tf.stack(met, axis=1)[:, :, None], gradients.dtype)
            layout = Layout((3, units, units), (1, 0, 2))
            return OuterFactor(a, positions(gradients, lead=2, groups=3), layout=layout)

        z = add_bias(keras.ops.matmul(x, layer.kernel), layer.bias)
        by_input = affine(layer.bias, x)
        z = watch(z, present(layer.kernel, layer.bias), by_input)
        z = watch(z, [layer.recurrent_kernel], recurrent, through)
        x_update, x_reset, x_new = tf.split(z, 3, axis=1)
        kernel = tf.convert_to_tensor(layer.recurrent_kernel)
        kernel = tf.cast(kernel, h.dtype)
        through.append(tf.matmul(h, kernel[:, : 2 * units]))
        h_update, h_reset = tf.split(through[0], 2, axis=1)
        reset = layer.recurrent_activation(x_reset + h_reset)
        met.append(reset * h)
        through.append(tf.matmul(met[2], kernel[:, 2 * units :]))
        candidate = layer.activation(x_new + through[1])
        return layer.recurrent_activation(x_update + h_update), candidate


def _one_of(index: int, a: Any) -> Callable[[list[keras.Variable], tf.Tensor], Factor]:
    """Factor of a kernel whose result is one of several that were stacked."""

    def factor(variables: list[keras.Variable], gradients: tf.Tensor) -> Factor:
        return affine(None, a)(variables, gradients[:, :, index])

    return factor


_CELLS: dict[type, LayerRule] = {
    keras.layers.SimpleRNNCell: SimpleRNNCellRule(),
    keras.layers.LSTMCell: LSTMCellRule(),
    keras.layers.GRUCell: GRUCellRule(),
}
for _cell, _rule in _CELLS.items():
    register_rule(_cell, _rule)
for _name in ("SimpleRNN", "LSTM", "GRU", "RNN"):
    register_rule(getattr(keras.layers, _name), RecurrentRule())

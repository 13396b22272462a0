"""`SimpleRNN`, `LSTM`, `GRU`, `RNN` of their cells, and these cells: exact, in one loop.

What a recurrent layer computes from its inputs, `x W + bias`, is one product for all time
steps, made before the loop and watched there. The loop adds `h U` to it, step by step, so
that the gradient by what was watched is that by every pre-activation; and it hands out the
states `h` that `U` met. All variables have their per-example gradients from these two.
Where a layer has `unroll=True`, there is no loop, as in Keras; nor where an activation is
not Keras' own, which may read anything: every operation is then in sight of the proof.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from keras_kare.kernels.factors import Factor, FullFactor, Layout, OuterFactor, positions
from keras_kare.kernels.structured.affine import affine
from keras_kare.kernels.structured.registry import register_rule
from keras_kare.kernels.structured.rule import (
    LayerRule,
    MakeFactor,
    Watch,
    activate,
    add_bias,
    present,
)
from keras_kare.kernels.structured.untouched import is_of_libraries

_KERAS_CALL = keras.layers.RNN.call

Tensors = tuple[tf.Tensor, ...]


class CellRule(LayerRule):
    """A cell, `z = x W + bias + h U`, called for one time step or for a sequence."""

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
        met: list[tf.Tensor] = []
        through: list[tf.Tensor] = []
        entering = self.entering(layer, watch, inputs, met, through)
        own = tuple(states) if nested else (states,)
        output, new, met[:], through[:] = self.step(
            layer, entering, _recurrent_kernel(layer, entering.dtype), own
        )
        return output, list(new) if nested else new[0]

    def entering(
        self,
        cell: Any,
        watch: Watch,
        x: Any,
        met: list[tf.Tensor],
        through: list[tf.Tensor],
    ) -> tf.Tensor:
        """What is added to products with `U`, watched for all variables of the cell.

        Args:
            cell: The cell.
            watch: See `Watch`.
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
        """Factors of `U`, which is multiplied with the states that `met` will hold."""
        return lambda variables, gradients: affine(None, met[0])(variables, gradients)

    @abc.abstractmethod
    def step(
        self,
        cell: keras.layers.Layer,
        entering: tf.Tensor,
        u: tf.Tensor,
        states: Tensors,
    ) -> tuple[tf.Tensor, Tensors, Tensors, Tensors]:
        """One time step.

        Returns:
            The output; the new states; what `u` met; the products with `u`.
        """


class SimpleRNNCellRule(CellRule):
    """`h' = activation(x W + h U + bias)`."""

    def step(self, cell: Any, entering: Any, u: Any, states: Tensors) -> Any:
        product = tf.matmul(states[0], u)
        output = activate(cell, entering + product)
        return output, (output,), (states[0],), (product,)


class LSTMCellRule(CellRule):
    """Four gates of one pre-activation `x W + h U + bias`: input, forget, cell, output."""

    def step(self, cell: Any, entering: Any, u: Any, states: Tensors) -> Any:
        h, c = states
        product = tf.matmul(h, u)
        z = tf.split(entering + product, 4, axis=1)
        enter, forget, out = (cell.recurrent_activation(z[i]) for i in (0, 1, 3))
        c = forget * c + enter * cell.activation(z[2])
        output = out * cell.activation(c)
        return output, (output, c), (h,), (product,)


class GRUCellRule(CellRule):
    """Gates `z`, `r` and a candidate; `r` applies before or after the product by `U`."""

    def entering(self, cell: Any, watch: Watch, x: Any, met: Any, through: Any) -> Any:
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
    """Factor of a bias `(2, 3 units)` that is added at every step."""
    steps = list(range(2, gradients.shape.rank - 2))
    return FullFactor(tf.reduce_sum(gradients, axis=steps))


def _one_of(index: int, a: Callable[[], Any]) -> MakeFactor:
    """Factor of a kernel whose result is one of two that were stacked."""

    def factor(variables: list[keras.Variable], gradients: tf.Tensor) -> Factor:
        return affine(None, a())(variables, gradients[..., index, :])

    return factor


def _recurrent_kernel(cell: keras.layers.Layer, dtype: tf.DType) -> tf.Tensor:
    return tf.cast(tf.convert_to_tensor(cell.recurrent_kernel), dtype)


_CELLS: dict[type, CellRule] = {
    keras.layers.SimpleRNNCell: SimpleRNNCellRule(),
    keras.layers.LSTMCell: LSTMCellRule(),
    keras.layers.GRUCell: GRUCellRule(),
}


class RecurrentRule(LayerRule):
    """Runs the layer as Keras does, but for its loop."""

    def accepts(self, layer: keras.layers.Layer) -> bool:
        known = type(layer.cell) in (*_CELLS, keras.layers.StackedRNNCells)
        return (
            super().accepts(layer)
            and known
            and "inner_loop" not in vars(layer)
            and all(_accepts(cell, layer.compute_dtype) for cell in _cells(layer))
        )

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

        def loop(sequences: Any, initial_state: Any, mask: Any, training: Any) -> Any:
            return _loop(layer, watch, sequences, initial_state, mask)

        with _with_loop(layer, loop):
            return _KERAS_CALL(layer, sequences, initial_state, mask, False)


@contextlib.contextmanager
def _with_loop(layer: keras.layers.Layer, loop: Callable[..., Any]) -> Iterator[None]:
    """Keras' own call with another loop."""
    layer.inner_loop = loop
    try:
        yield
    finally:
        del layer.inner_loop


def _accepts(cell: keras.layers.Layer, dtype: str) -> bool:
    """Whether a cell is one of those above, in all that it does."""
    rule = _CELLS.get(type(cell))
    own = "call" in vars(cell) or cell.compute_dtype != dtype
    return rule is not None and not own and rule.accepts(cell)


def _cells(layer: keras.layers.Layer) -> Sequence[keras.layers.Layer]:
    found: Sequence[keras.layers.Layer] = getattr(layer.cell, "cells", [layer.cell])
    return found


def _loop(
    layer: keras.layers.Layer, watch: Watch, x: Any, initial_state: Any, mask: Any
) -> tuple[tf.Tensor, tf.Tensor, Any]:
    """The last output, all outputs, and the last states.

    Cells that are stacked run one after the other, each for all time steps.
    """
    if mask is not None:
        mask = mask[0] if isinstance(mask, list | tuple) else mask
        mask = tf.cast(mask[..., 0] if mask.shape.rank == 3 else mask, tf.bool)
    if layer.go_backwards:
        x = tf.reverse(x, [1])
        mask = None if mask is None else tf.reverse(mask, [1])
    cells, blanks = _cells(layer), getattr(layer, "zero_output_for_mask", False)
    stacked = cells[0] is not layer.cell
    given = initial_state if stacked else [initial_state]
    states = []
    for cell, state in zip(cells, given, strict=True):
        x, state = _run(cell, watch, x, state, mask, blanks, layer.unroll)
        states.append(state)
    return x[:, -1], x, states if stacked else states[0]


def _run(
    cell: keras.layers.Layer,
    watch: Watch,
    x: Any,
    state: Any,
    mask: tf.Tensor | None,
    blanks: bool,
    unroll: bool,
) -> tuple[tf.Tensor, Any]:
    """A cell's outputs for all time steps, `(n, t, units)`, and its last states.

    A masked step hands states on, and its output is that of the step before, or zero.
    """
    rule = _CELLS[type(cell)]
    met: list[tf.Tensor] = []
    through: list[tf.Tensor] = []
    entering = rule.entering(cell, watch, x, met, through)
    nested = isinstance(state, list | tuple)
    first = tuple(tf.convert_to_tensor(s) for s in (state if nested else [state]))
    u = _recurrent_kernel(cell, entering.dtype)
    blank = tf.zeros_like(first[0])
    steps = [entering] if mask is None else [entering, mask[..., None]]

    def step(now: list[tf.Tensor], output: tf.Tensor, states: Any) -> tuple[Any, ...]:
        found, new, met, products = rule.step(cell, now[0], u, states)
        if mask is not None:
            kept = (blank if blanks else output, *states)
            pairs = zip((found, *new), kept, strict=True)
            found, *states = (tf.where(now[1], a, b) for a, b in pairs)
            return found, tuple(states), met, products
        return found, new, met, products

    rows, length = entering.shape[:2]  # which loops forget
    own = _is_kerass(cell.activation) and _is_kerass(
        getattr(cell, "recurrent_activation", cell.activation)
    )
    # Nothing is proven of what happens in a loop. Keras' own activations read no variable.
    unroll = unroll or (not own and length is not None)
    runs = _unrolled if unroll else _looped
    outputs, states, inner, products = runs(
        step, list(map(_time_first, steps)), blank, first
    )
    for t in (outputs, *inner):
        t.set_shape([length, rows, cell.units])
    for t in states:
        t.set_shape([rows, cell.units])
    if unroll:
        through += products
    elif own:
        through += [outputs, *states, *inner]
    met += [_rows_first(v) for v in inner]
    outputs = _rows_first(outputs)
    return outputs, list(states) if nested else states[0]


def _looped(
    step: Callable[..., Any], inputs: list[tf.Tensor], output: Any, states: Tensors
) -> tuple[tf.Tensor, Tensors, list[tf.Tensor], list[tf.Tensor]]:
    """All outputs, the last states, and all that was met, time first; no products."""
    length = tf.shape(inputs[0])[0]
    given = [tf.TensorArray(t.dtype, length).unstack(t) for t in inputs]
    _, _, met, _ = step([t[0] for t in inputs], output, states)
    arrays = tuple(
        tf.TensorArray(t.dtype, length, element_shape=t.shape) for t in (output, *met)
    )

    def body(t: tf.Tensor, written: Any, output: Any, states: Any) -> tuple[Any, ...]:
        now = [array.read(t) for array in given]
        output, states, met, _ = step(now, output, states)
        pairs = zip(written, (output, *met), strict=True)
        return t + 1, tuple(array.write(t, v) for array, v in pairs), output, states

    _, written, _, states = tf.while_loop(
        lambda t, *_: t < length,
        body,
        (0, arrays, output, states),
        maximum_iterations=inputs[0].shape[0],
    )
    outputs, *inner = (array.stack() for array in written)
    return outputs, states, inner, []


def _unrolled(
    step: Callable[..., Any], inputs: list[tf.Tensor], output: Any, states: Tensors
) -> tuple[tf.Tensor, Tensors, list[tf.Tensor], list[tf.Tensor]]:
    """The same, every step by itself: quicker to run, slower to trace."""
    found, products = [], []
    for now in zip(*map(tf.unstack, inputs), strict=True):
        output, states, met, added = step(now, output, states)
        found.append((output, *met))
        products.extend(added)
    outputs, *inner = (tf.stack(values) for values in zip(*found, strict=True))
    return outputs, states, inner, products


_PLAIN_LAYERS = layers.ELU, layers.LeakyReLU, layers.PReLU, layers.ReLU


def _is_kerass(activation: Any) -> bool:
    """Whether an activation is Keras' own, and knows of no other layer."""
    return type(activation) in _PLAIN_LAYERS or is_of_libraries(activation)


def _time_first(t: tf.Tensor) -> tf.Tensor:
    return tf.transpose(t, (1, 0, *range(2, t.shape.rank)))


_rows_first = _time_first

for _cell, _rule in _CELLS.items():
    register_rule(_cell, _rule)
for _name in ("SimpleRNN", "LSTM", "GRU", "RNN"):
    register_rule(getattr(keras.layers, _name), RecurrentRule())

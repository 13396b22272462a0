"""`SimpleRNN`, `LSTM`, `GRU`, and `RNN` of their cells: exact, in one loop.

What a recurrent layer computes from its inputs, `x W + bias`, is one product for all time
steps, made before the loop and watched there. The loop adds `h U` to it, step by step, so
that the gradient by what was watched is that by every pre-activation; and it hands out the
states `h` that `U` met. All variables have their per-example gradients from these two.
Where a layer has `unroll=True`, there is no loop, as in Keras; nor where an activation is
not Keras' own, which may read anything: every operation is then in sight of the proof.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from keras_kare.kernels.structured.cells import CELLS, Tensors, recurrent_kernel
from keras_kare.kernels.structured.registry import register_rule
from keras_kare.kernels.structured.rule import LayerRule, Watcher
from keras_kare.kernels.structured.untouched import is_of_libraries

_KERAS_CALL = keras.layers.RNN.call


class RecurrentRule(LayerRule):
    """The rule of recurrent layers, which run as in Keras, but for the loop."""

    def accepts(self, layer: keras.layers.Layer) -> bool:
        known = type(layer.cell) in (*CELLS, keras.layers.StackedRNNCells)
        return (
            super().accepts(layer)
            and known
            and "inner_loop" not in vars(layer)
            and all(_accepts(cell, layer.compute_dtype) for cell in _cells(layer))
        )

    def call(
        self,
        layer: keras.layers.Layer,
        watch: Watcher,
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
    """Give Keras' own call another loop."""
    layer.inner_loop = loop
    try:
        yield
    finally:
        del layer.inner_loop


def _accepts(cell: keras.layers.Layer, dtype: str) -> bool:
    """Tell whether a cell is one of those above, in all that it does."""
    rule = CELLS.get(type(cell))
    own = "call" in vars(cell) or cell.compute_dtype != dtype
    return rule is not None and not own and rule.accepts(cell)


def _cells(layer: keras.layers.Layer) -> Sequence[keras.layers.Layer]:
    found: Sequence[keras.layers.Layer] = getattr(layer.cell, "cells", [layer.cell])
    return found


def _loop(
    layer: keras.layers.Layer, watch: Watcher, x: Any, initial_state: Any, mask: Any
) -> tuple[tf.Tensor, tf.Tensor, Any]:
    """Return the last output, all outputs, and the last states.

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
    watch: Watcher,
    x: Any,
    state: Any,
    mask: tf.Tensor | None,
    blanks: bool,
    unroll: bool,
) -> tuple[tf.Tensor, Any]:
    """Return a cell's outputs for all time steps, `(n, t, units)`, and its last states.

    A masked step hands states on, and its output is that of the step before, or zero.
    """
    rule = CELLS[type(cell)]
    met: list[tf.Tensor] = []
    through: list[tf.Tensor] = []
    entering = rule.entering(cell, watch, x, met, through)
    nested = isinstance(state, list | tuple)
    first = tuple(tf.convert_to_tensor(s) for s in (state if nested else [state]))
    u = recurrent_kernel(cell, entering.dtype)
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
    """Return outputs, last states, and what was met, time first; no products."""
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
    """Return what `_looped` does, and products: quicker to run, slower to trace."""
    found, products = [], []
    for now in zip(*map(tf.unstack, inputs), strict=True):
        output, states, met, added = step(now, output, states)
        found.append((output, *met))
        products.extend(added)
    outputs, *inner = (tf.stack(values) for values in zip(*found, strict=True))
    return outputs, states, inner, products


_PLAIN_LAYERS = layers.ELU, layers.LeakyReLU, layers.PReLU, layers.ReLU


def _is_kerass(activation: Any) -> bool:
    """Tell whether an activation is Keras' own, and knows of no other layer."""
    return type(activation) in _PLAIN_LAYERS or is_of_libraries(activation)


def _time_first(t: tf.Tensor) -> tf.Tensor:
    return tf.transpose(t, (1, 0, *range(2, t.shape.rank)))


_rows_first = _time_first

for _name in ("SimpleRNN", "LSTM", "GRU", "RNN"):
    register_rule(getattr(keras.layers, _name), RecurrentRule())

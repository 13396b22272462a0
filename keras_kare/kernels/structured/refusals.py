"""Networks that have no neural tangent kernel, refused before any long work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare.kernels.jacobian import outputs_of


def trace_and_run(function: Callable[..., Any], *args: Any) -> Any:
    """Run a function once as a graph, as kernels do."""
    return tf.function(function, autograph=False).get_concrete_function(*args)(*args)


def refuse_coupled(
    network: keras.Model,
    x: Any,
    variables: list[keras.Variable],
    values: list[tf.Tensor],
    f: np.ndarray,
    tolerance: float,
) -> None:
    """A row must not change when the others do, nor from call to call.

    Asked of the first row and of the last: where only earlier or only later rows
    reach a row, one of them shows it.
    """
    if not np.all(np.isfinite(f)):
        return  # the caller names non-finite weights and inputs

    def perturbed(x: Any, values: list[tf.Tensor]) -> tf.Tensor:
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return outputs_of(network, x)

    # A stateless scope also holds the state of random generators.
    plain = tf.function(lambda x: outputs_of(network, x), autograph=False)
    once = plain.get_concrete_function(x)
    pairs = [(once(x).numpy(), once(x).numpy())]
    for kept in (0, -1):
        others = keras.tree.map_structure(lambda t, row=kept: _other_rows(t, row), x)
        pairs.append((trace_and_run(perturbed, others, values).numpy()[kept], f[kept]))
    for number, (a, b) in enumerate(pairs):
        if not np.all(np.isfinite(a)) or not np.all(np.isfinite(b)):
            continue
        scale = float(np.max(np.abs(b), initial=0.0)) or 1.0
        if float(np.max(np.abs(a - b))) > 0.1 * tolerance * scale:
            if number:  # the first pair tells of randomness
                same = trace_and_run(perturbed, x, values).numpy()
                _refuse_wrong_rules(network, same, f, tolerance)
            raise ValueError(
                "The outputs of `network` for one row depend on the other rows of the "
                "batch, or are random, even with `training=False`. Such a network has no "
                "neural tangent kernel. Look for statistics over the batch axis, a "
                "`training=True` in a layer's call, or an axis swapped with the rows. "
                f"Received: network={network.name!r}"
            )


def _refuse_wrong_rules(
    network: keras.Model, plain: np.ndarray, ruled: np.ndarray, tolerance: float
) -> None:
    """The rules must compute what the layers compute."""
    scale = float(np.max(np.abs(plain), initial=0.0)) or 1.0
    if float(np.max(np.abs(plain - ruled))) > 0.1 * tolerance * scale:
        raise ValueError(
            f"With layer rules, {network.name!r} computes other outputs than without. A "
            "rule's `call` must compute what its layer's `call` does: mend the rule that "
            'you registered, or use `method="jacobian"`.'
        )


def refuse_constant_sum(
    summed: list[np.ndarray | None], mixed: list[np.ndarray | None], tolerance: float
) -> None:
    """Gradients of the summed outputs must not vanish beside those of a random mix."""

    def size(gradients: list[np.ndarray | None]) -> float:
        return max(
            (float(np.max(np.abs(g), initial=0.0)) for g in gradients if g is not None),
            default=0.0,
        )

    if size(summed) <= 0.01 * tolerance * size(mixed):
        raise ValueError(
            "The summed outputs of `network` are constant (a softmax, it seems), so its "
            '`outputs="sum"` kernel is zero. Use `outputs="trace"`, or a network whose '
            "last layer is linear."
        )


def _other_rows(x: tf.Tensor, kept: int) -> tf.Tensor:
    """The same row at `kept`, first or last, among other rows."""
    if x.dtype.is_floating:
        changed = x * 1.37 + 0.11
    else:
        changed = tf.repeat(x[kept][None], tf.shape(x)[0], axis=0)
    parts = [x[:1], changed[1:]] if kept == 0 else [changed[:-1], x[-1:]]
    return tf.concat(parts, axis=0)

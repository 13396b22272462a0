"""Second derivatives of what networks are made of: right, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from second_order_cases import ACTIVATIONS, OPERATIONS, REFUSED, Case
from second_order_layers import LAYERS, REFUSED_LAYERS

from keras_kare.kernels.structured.capture import Recorder, recording
from keras_kare.kernels.structured.differentiability import undifferentiable

pytestmark = pytest.mark.usefixtures("float64")

CASES = (
    {f"activation: {name}": case for name, case in ACTIVATIONS.items()}
    | OPERATIONS
    | {f"layer: {name}": case for name, case in LAYERS.items()}
)
BLAME = REFUSED | {f"layer: {name}": kind for name, kind in REFUSED_LAYERS.items()}

MISSING = (LookupError, TypeError, ValueError, NotImplementedError, tf.errors.OpError)
"""What TensorFlow raises where it has no gradient."""


class Curved:
    """A number that is computed by a function, and bends beyond it.

    `value` is quadratic in the function's outputs; its slopes are the derivatives by the
    tensor and by the function's variables.
    """

    def __init__(self, function: Callable[[Any], Any]):
        self.function = function

    def variables(self) -> list[Any]:
        found = getattr(self.function, "trainable_variables", [])
        return [v.value for v in found]

    def value(self, x: tf.Tensor) -> tf.Tensor:
        # As kernels run networks: rules that mend derivatives are in place.
        with recording(Recorder(None, lambda layer: False)):
            outputs = self.function(x)
        total = tf.constant(0.0, tf.float64)
        for y in keras.tree.flatten(outputs):
            y = tf.convert_to_tensor(y)
            for part in (tf.math.real(y), tf.math.imag(y)) if y.dtype.is_complex else [y]:
                if part.dtype.is_floating:
                    part = tf.cast(part, tf.float64)
                    total += tf.reduce_sum(_weights(part) * (part + 0.5 * part**2))
        return total

    def value_and_slopes(self, x: tf.Tensor) -> list[tf.Tensor]:
        sources = [x, *self.variables()]
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = self.value(x)
        found = tape.gradient(value, sources, unconnected_gradients="zero")
        return [value, *(tf.convert_to_tensor(g) for g in found)]


def _weights(y: tf.Tensor) -> tf.Tensor:
    """Fixed random numbers of this shape."""
    return tf.random.stateless_normal(tf.shape(y), (1, 2), dtype=y.dtype)


def _along(
    curved: Curved, case: Case, of: Callable[[tf.Tensor], tf.Tensor], way: list[Any]
) -> float:
    """Derivative of a number in one direction, by finite differences of fourth order."""
    variables = curved.variables()
    start = [v.numpy() for v in variables]

    def moved(distance: float) -> float:
        for v, s, w in zip(variables, start, way[1:], strict=True):
            v.assign(s + distance * w)
        return float(of(tf.constant(case.x + distance * way[0])))

    h = case.step
    slope = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
    moved(0.0)
    return slope


def errors(curved: Curved, case: Case) -> tuple[float, float]:
    """Of the first and of the second derivative, relative; infinite where there is none."""
    x = tf.constant(case.x)
    rng = np.random.default_rng(3)
    shapes = [x.shape, *(v.shape for v in curved.variables())]
    ways = [[rng.normal(size=shape) / 10 for shape in shapes] for _ in range(2)]

    def slope(x: tf.Tensor) -> tf.Tensor:
        _, *slopes = curved.value_and_slopes(x)
        pairs = zip(slopes, ways[0], strict=True)
        return tf.add_n([tf.reduce_sum(g * w) for g, w in pairs])

    try:
        first = float(slope(x))
        with tf.GradientTape() as tape:
            tape.watch(x)
            number = slope(x)
        sources = [x, *curved.variables()]
        found = tape.gradient(number, sources, unconnected_gradients="zero")
    except MISSING:
        return np.inf, np.inf
    pairs = zip(found, ways[1], strict=True)
    second = sum(float(tf.reduce_sum(tf.convert_to_tensor(g) * w)) for g, w in pairs)
    return (
        _relative(first, _along(curved, case, curved.value, ways[0])),
        _relative(second, _along(curved, case, slope, ways[1])),
    )


def _relative(found: float, measured: float) -> float:
    return abs(found - measured) / max(abs(measured), 1e-3)


def complaints(curved: Curved, case: Case) -> list[str]:
    """What the reader says of a graph with the first derivatives, or of the forward one."""
    spec = tf.TensorSpec(case.x.shape, tf.float64)
    found: list[str] = []

    def trace(function: Callable[[Any], Any], x: tf.Tensor) -> Any:
        results = function(x)
        graph = x.graph
        held = {id(v.handle) for v in curved.variables()}
        sources = [x, *(t for handle, t in graph.captures if id(handle) in held)]
        operations = graph.get_operations()
        found.extend(undifferentiable(operations, sources, tf.nest.flatten(results)))
        return results

    for function in (curved.value_and_slopes, curved.value):
        traced = tf.function(lambda x, f=function: trace(f, x), autograph=False)
        try:
            traced.get_concrete_function(spec)
        except MISSING:
            continue  # no first derivative: the forward pass tells which
        break
    return found


MENDED = ("bilinear", "resize", "response", "softsign", "LayerNorm", "GroupNorm")
ORDINARY = {*BLAME, *list(CASES)[::6]}
ORDINARY |= {name for name in CASES if any(word in name for word in MENDED)}


@pytest.mark.parametrize(
    "name",
    [
        name if name in ORDINARY else pytest.param(name, marks=pytest.mark.slow)
        for name in CASES
    ],
)
def test_right_or_refused(name):
    case = CASES[name]
    try:
        curved = Curved(case.make())
        first, second = errors(curved, case)
    except AttributeError as error:
        if "has no attribute" not in str(error):
            raise
        pytest.skip(f"this version lacks it: {error}")
    found = complaints(curved, case)
    if name in BLAME:
        assert max(first, second) > case.tolerance
        assert any(line.startswith(f"{BLAME[name]} (") for line in found), found
    else:
        assert first < case.tolerance
        assert second < case.tolerance
        assert not found

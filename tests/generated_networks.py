"""Small random networks: a layer type, a way of use, a form, types, and rows.

`cases(count, seed)` yields them so that few cover every layer type (`generated_layers`)
and every way of use (`generated_uses`). Each has rows to plan a kernel with and other
rows, on which gates are open that the first never open; and what a tape over one output
of one row at a time says about them, which shares no code with the library.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from generated_layers import PARTS, VOCABULARY, Part
from generated_uses import USES, Body
from keras import layers

ROWS = 5
FORMS = {"functional": 0.4, "subclassed": 0.35, "traced": 0.1, "built": 0.15}
"""How the network is written, and how often."""

TYPES = {
    "float64": 1e-9,
    "float32": 1e-4,
    "float32 layer": 1e-4,
    "float64 layer": 1e-4,
    "bfloat16 layer": 5e-2,
    "float16 layer": 5e-2,
    "mixed_bfloat16": 5e-2,
    "mixed_float16": 5e-2,
}
"""By name: how far kernel values may be off, relative to the largest."""

OFTEN = (0.4, 0.2, 0.05, 0.05, 0.1, 0.05, 0.1, 0.05)
LAYER = {
    "float32 layer": "float32",
    "float64 layer": "float64",
    "bfloat16 layer": "mixed_bfloat16",
    "float16 layer": "mixed_float16",
}
"""The type of the layer under test, where it is not that of the others."""


class Whole(keras.Model):
    """A body and a last layer, as users write models."""

    def __init__(self, body: Body, head: Any):
        super().__init__()
        self.body, self.head = body, head

    def call(self, x: Any) -> Any:
        f = self.head(self.body(x))
        return self.body.last(f, self.body.gate_of(x)) if hasattr(self.body, "last") else f


class TracedWhole(Whole):
    @tf.function
    def call(self, x: Any) -> Any:
        return super().call(x)


@dataclass(frozen=True)
class Case:
    """One generated network. `print` shows how to make it again."""

    seed: int
    part: str
    use: str
    form: str
    types: str
    outputs: str
    columns: int
    first: bool
    rows: str

    def __str__(self) -> str:
        bits = [
            self.part,
            self.use,
            self.form,
            self.types,
            f"{self.outputs} {self.columns}",
        ]
        return ", ".join([*bits, f"planned on {self.rows}", f"seed {self.seed}"])

    @property
    def layer(self) -> Part:
        return PARTS[self.part]

    @property
    def tolerance(self) -> float:
        # Keras keeps what it adds to a kernel in float32, whatever the layer's type.
        least = TYPES["float32"] if self.part == "low rank" else 0.0
        return max(least, TYPES[self.types])

    @contextlib.contextmanager
    def policy(self) -> Iterator[None]:
        """The global types that the network is made and run with."""
        name = {"float32 layer": "float64"}.get(self.types, self.types)
        name = "float32" if name in LAYER else name
        before = keras.config.floatx(), keras.config.dtype_policy()
        keras.config.set_floatx("float64" if name == "float64" else "float32")
        keras.config.set_dtype_policy(name)
        try:
            yield
        finally:
            keras.config.set_floatx(before[0])
            keras.config.set_dtype_policy(before[1])

    def make(self) -> Any:
        """The network, weights at random: nothing is zero by initialisation."""
        keras.utils.set_random_seed(self.seed)
        if self.use == "direct":
            network = self._direct()
        else:
            body = USES[self.use].body(self.layer, LAYER.get(self.types), self.first)
            network = self._around(body)
            if hasattr(body, "freeze"):
                body.freeze()
        randomise(network, np.random.default_rng(self.seed))
        if getattr(getattr(network, "body", None), "warm", False):
            for count in (ROWS, ROWS - 1):  # a cached trace of any number of rows
                network(as_tensors(self.plan_rows(), slice(0, count)))
        return network

    def _direct(self) -> Any:
        kind = "int32" if self.layer.tokens else None
        own = {"dtype": LAYER[self.types]} if self.types in LAYER else {}
        if self.layer.activates:
            own["activation"] = layers.PReLU(alpha_initializer="uniform")
        between = [] if self.layer.tokens else [layers.Dense(self.layer.shape[-1], "tanh")]
        return keras.Sequential(
            [
                keras.Input(self.layer.shape, dtype=kind),
                *between,
                self.layer.make(**own),
                layers.Flatten(),
                layers.Dense(self.columns),
            ]
        )

    def _around(self, body: Body) -> Any:
        head = layers.Dense(self.columns, dtype="float32" if self._mixed() else None)
        kind = "int32" if self.layer.tokens else None
        if self.form == "functional":
            x = keras.Input(self.layer.shape, dtype=kind)
            inputs = [x, keras.Input(self.layer.shape, dtype=kind)] if self.two else x
            return keras.Model(inputs, head(body(inputs)))
        network = (TracedWhole if self.form == "traced" else Whole)(body, head)
        if self.form == "built":
            network.build((None, *self.layer.shape))
        else:
            network(as_tensors(self.plan_rows(), slice(0, 2)))
        return network

    def _mixed(self) -> bool:
        """Whether the last layer stays in float32, as Keras recommends."""
        return self.types.startswith("mixed") and self.seed % 2 == 0

    @property
    def two(self) -> bool:
        return self.use == "optional"

    def plan_rows(self) -> Any:
        """All gates shut: zeros, all equal, or at random."""
        rng = np.random.default_rng(self.seed + 1)
        shape = (ROWS, *self.layer.shape)
        if self.layer.tokens:
            x = rng.integers(0, VOCABULARY - 1, size=shape).astype("int32")
            x = {"zeros": np.zeros_like(x), "equal": np.ones_like(x)}.get(self.rows, x)
        else:
            x = self._steps(rng.normal(size=shape).astype(self.floats))
            x = {"zeros": np.zeros_like(x), "equal": np.ones_like(x)}.get(self.rows, x)
            x.reshape(ROWS, -1)[:, 0] = 0.0
        return [x, np.zeros_like(x)] if self.two else x

    def other_rows(self) -> Any:
        """Gates open on two of the rows."""
        rng = np.random.default_rng(self.seed + 2)
        shape, opened = (ROWS, *self.layer.shape), [1, 3]
        if self.layer.tokens:
            x = rng.integers(0, VOCABULARY, size=shape).astype("int32")
            x[:, 0] = np.minimum(x[:, 0], VOCABULARY - 2)
            x[opened, 0] = VOCABULARY - 1
        else:
            x = self._steps(rng.normal(size=shape).astype(self.floats))
            first = np.abs(x.reshape(ROWS, -1)[:, 0]) + 0.5
            x.reshape(ROWS, -1)[:, 0] = np.isin(np.arange(ROWS), opened) * first
        second = np.zeros_like(x)
        second[opened] = x[[0, 2]]
        return [x, second] if self.two else x

    def _steps(self, x: np.ndarray) -> np.ndarray:
        if self.use == "masked":
            x[::2, -1] = 0.0
        return x

    @property
    def floats(self) -> str:
        return "float64" if self.types in ("float64", "float32 layer") else "float32"


def as_tensors(x: Any, rows: slice) -> Any:
    return keras.tree.map_structure(lambda t: tf.constant(t[rows]), x)


def randomise(network: Any, rng: np.random.Generator) -> None:
    for weight in network.weights:
        if tf.as_dtype(weight.dtype).is_floating:
            noise = 0.4 * rng.normal(size=weight.shape)
            value = np.asarray(tf.cast(weight.value, "float64"))
            variance = weight.path.endswith("moving_variance")
            weight.assign(0.5 + noise**2 if variance else value + noise)


def fresh_copy(case: Case, weights: list[np.ndarray]) -> Any:
    """The network made again, out of the library's sight, called once, same weights."""
    network = case.make()
    network(as_tensors(case.plan_rows(), slice(0, 2)))
    network.set_weights(weights)
    return network


def jacobians_by_hand(network: Any, x: Any) -> np.ndarray:
    """`(n, c, P)` in float64: plain eager TensorFlow, one output of one row at a time.

    Once for rows that are the same to the bit.
    """
    variables = [v.value for v in network.trainable_variables]
    rows, known = [], {}
    for i in range(len(keras.tree.flatten(x)[0])):
        row = as_tensors(x, slice(i, i + 1))
        key = tuple(t.numpy().tobytes() for t in keras.tree.flatten(row))
        if key not in known:
            with tf.GradientTape(persistent=True) as tape:
                outputs = tf.unstack(tf.reshape(network(row, training=False), (-1,)))
            parts = [
                tape.gradient(o, variables, unconnected_gradients="zero") for o in outputs
            ]
            known[key] = [np.concatenate([_flat(g) for g in part]) for part in parts]
        rows.append(known[key])
    return np.array(rows)


def _flat(gradient: Any) -> np.ndarray:
    dense = tf.convert_to_tensor(gradient)  # not rows of a table
    return np.ravel(tf.cast(dense, tf.float64))


def kernel_by_hand(outputs: str, j1: np.ndarray, j2: np.ndarray) -> np.ndarray:
    if outputs == "sum":
        return j1.sum(1) @ j2.sum(1).T
    return np.einsum("ikp,jkp->ij", j1, j2) / j1.shape[1]


def cases(count: int, seed: int) -> list[Case]:
    """Layer types and ways of use each in an order of their own, over and over."""
    rng = np.random.default_rng(seed)
    uses = [*USES, "direct"]
    waiting: list[str] = []
    found = []
    for number in range(count):
        if number % len(uses) == 0:
            rng.shuffle(uses)
        use = uses[number % len(uses)]
        part = _next_part(use, waiting, rng)
        found.append(_case(int(rng.integers(2**31)), part, use, rng))
    return found


def _next_part(use: str, waiting: list[str], rng: np.random.Generator) -> str:
    """The layer type that fits and has waited longest."""
    while True:
        for part in waiting:
            if _fits(use, PARTS[part]):
                waiting.remove(part)
                return part
        more = list(PARTS)
        rng.shuffle(more)
        waiting.extend(more)


def _fits(use: str, part: Part) -> bool:
    if use == "direct":
        return part.call is Part.call
    return USES[use].fits(part)


def _case(seed: int, part: str, use: str, rng: np.random.Generator) -> Case:
    outputs, columns = [("sum", 1), ("sum", 2), ("trace", 2)][rng.integers(3)]
    form = str(rng.choice(list(FORMS), p=list(FORMS.values())))
    if use == "dead":
        outputs, columns, form = "sum", 1, "subclassed"
    if use == "cached":
        form = "subclassed"
    if form == "built" and (use.startswith("frozen") or use == "optional"):
        form = "functional"
    return Case(
        seed=seed,
        part=part,
        use=use,
        form="sequential" if use == "direct" else form,
        types=str(rng.choice(list(TYPES), p=OFTEN)),
        outputs=outputs,
        columns=columns,
        first=bool(rng.integers(3) == 0) and use != "masked",
        rows=str(rng.choice(["zeros", "equal", "real"])),
    )

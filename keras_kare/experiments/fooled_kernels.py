"""Kernels of several kinds, trained by KARE and by what may serve better."""

from __future__ import annotations

import functools
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_kare.kernels import NTK, Gaussian, Kernel, Laplace, Polynomial, Sum, Weighted
from keras_kare.losses import KARE, GramLoss, HoldoutKARE
from keras_kare.models.training_step import noise_like
from keras_kare.recipes.descent import Descent, copy_of
from keras_kare.recipes.perceptrons import draw_weights, make_network

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the mixture's kernels, in median distances, which rows come in units of."""

RATES = {"ntk": 3e-3, "diagonal": 0.03, "full": 3e-3, "mixture": 0.1}
"""Kinds of kernels, and learning rates of Adam: an NTK; Laplace kernels with a scale for
each column or a matrix; a weighted sum of twelve kernels."""


class Kind(NamedTuple):
    """What is traced once.

    Attributes:
        name: One of `RATES`.
        columns: Of the rows.
        width: Units of each of an NTK's two hidden layers.
        ridge: Relative, `z̃` of KARE.
        loss: `"kare"` or `"holdout"`.
        shuffled: Whether steps see rows in another order each.
        inputs, targets: Standard deviation of the noise on inputs and on targets, another
            at each step, in units of that of each column: `input_noise` of `KAREModel`.
    """

    name: str
    columns: int
    width: int
    ridge: float
    loss: str = "kare"
    shuffled: bool = False
    inputs: float = 0.0
    targets: float = 0.0


class _Disturbed(Descent):
    """Descent whose steps see their batch as `Kind` says."""

    def __init__(self, kind: Kind, kernel: Kernel, loss: GramLoss):
        self._kind = kind  # the graph is made below
        row = tf.TensorSpec((kind.columns,))
        super().__init__(kernel, loss, keras.optimizers.Adam(), row)

    def seen(self, batch: list[tf.Tensor], moment: tf.Tensor) -> list[tf.Tensor]:
        x, y = batch
        if self._kind.shuffled:
            rows = tf.range(tf.shape(x)[0])
            order = tf.random.experimental.stateless_shuffle(rows, moment)
            x, y = tf.gather(x, order), tf.gather(y, order)
        return [
            _noisy(x, self._kind.inputs, moment),
            _noisy(y, self._kind.targets, moment + 1),
        ]


def _noisy(values: tf.Tensor, noise: float, moment: tf.Tensor) -> tf.Tensor:
    return values + noise_like(values, noise, moment) if noise else values


class Trained:
    """A kernel that is trained again and again, on any rows, through the same traces.

    Args:
        kind: What it is.
    """

    def __init__(self, kind: Kind):
        self.kind, self.kernel = kind, make_kernel(kind)
        loss = {"kare": KARE, "holdout": HoldoutKARE}[kind.loss]
        self._descent = _Disturbed(kind, self.kernel, loss(kind.ridge, relative=True))
        self._first = [copy_of(v) for v in self.kernel.trainable_variables]
        self._gram = tf.function(
            lambda x: self.kernel.gram(x, dtype="float64"),
            autograph=False,
            input_signature=[self._descent.rows],
        )

    def start(self, seed: int) -> None:
        """Go back to the start; an NTK's is drawn."""
        first = self._first
        if self.kind.name == "ntk":
            network = self.kernel.network
            first = draw_weights(network, np.random.default_rng(seed))
        for variable, value in zip(self.kernel.trainable_variables, first, strict=True):
            variable.assign(value)
        self._descent.restart()

    def train(
        self, x: np.ndarray, y: np.ndarray, steps: int, batches: int, seed: int
    ) -> bool:
        """Take steps; return whether all losses were finite."""
        rate = RATES[self.kind.name]
        losses = self._descent.run(x, y, rate, steps, batches, seed)
        return bool(np.all(np.isfinite(losses)))

    def gram(self, x: np.ndarray) -> np.ndarray:
        """Return `K(X, X)` in float64, `(n, n)`."""
        return np.asarray(self._gram(tf.constant(x, "float32")))


def make_kernel(kind: Kind) -> Kernel:
    """Make a kernel of that kind, at its start, with its variables."""
    if kind.name == "ntk":
        sizes = (kind.width, kind.width)
        return NTK(make_network(kind.columns, sizes, 1, "gelu", "float32"))
    kernel: Kernel = (
        _mixture() if kind.name == "mixture" else Laplace(1.0, metric=kind.name)
    )
    kernel.build((None, kind.columns))
    return kernel


def _mixture() -> Kernel:
    """Return a sum of twelve kernels, of which only the weights train."""
    parts: list[Kernel] = [Polynomial(degree, gamma=1.0) for degree in (1, 2)]
    parts += [make(s) for make in (Laplace, Gaussian) for s in BANDWIDTHS]
    for part in parts:
        part.trainable = False
    return Sum([Weighted(part, 1.0 / len(parts)) for part in parts])


@functools.lru_cache(maxsize=4)
def trained(kind: Kind) -> Trained:
    """Return the `Trained` of a kind, made once in each process."""
    return Trained(kind)

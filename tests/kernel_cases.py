"""Kernels, for tests of what every kernel has: a new one is a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from gaussian import Gaussian

import keras_kare as kk
from keras_kare.kernels.kernel import Kernel


@keras.saving.register_keras_serializable(package="tests")
class Linear(Kernel):
    """`x xᵀ`: a feature map, with nothing but the two verbs that it needs."""

    has_features = True

    def gram(self, x, dtype=None):
        return self.cross(x, x, dtype)

    def cross(self, x1, x2, dtype=None):
        x1, x2 = (tf.cast(x, dtype or "float64") for x in (x1, x2))
        return x1 @ tf.transpose(x2)

    def diag(self, x, dtype=None):
        return tf.reduce_sum(tf.cast(x, dtype or "float64") ** 2, axis=1)

    def vjp(self, x, v, dtype=None):
        x, v = (tf.cast(t, dtype or "float64") for t in (x, v))
        return [tf.transpose(v) @ x]

    def jvp(self, x, w):
        return tf.cast(x, w[0].dtype) @ tf.transpose(w[0])


def flat_rows(kernel: Kernel, n: int, rng: np.random.Generator) -> Any:
    """Rows of a few numbers each."""
    return rng.normal(size=(n, networks.D))


def rows_of_network(kernel: Kernel, n: int, rng: np.random.Generator) -> Any:
    """Rows that the kernel's network takes, which may be nested."""
    return networks.rows_for(kernel.network, n, rng)


@dataclass(frozen=True)
class KernelCase:
    """A kernel, and rows for it.

    Attributes:
        make: Makes it.
        rows: Takes it, a number of rows, and a generator; returns rows.
    """

    make: Callable[[], Kernel]
    rows: Callable[[Kernel, int, np.random.Generator], Any] = flat_rows


def ntk(network: Callable[[], Any], *arguments: Any, **options: Any) -> KernelCase:
    """A case of the NTK of a network."""

    def make() -> Kernel:
        return kk.kernels.NTK(network(), *arguments, **options)

    return KernelCase(make, rows_of_network)


CASES = {
    "gaussian": KernelCase(Gaussian),
    "linear": KernelCase(Linear),
    "ntk": ntk(networks.mlp),
    "ntk, trace": ntk(lambda: networks.mlp(c=3), "trace"),
    "ntk, tiles": ntk(networks.mlp, memory_limit=2_000_000),
    "ntk, two inputs": ntk(networks.two_inputs),
    "ntk, named inputs": ntk(networks.named_inputs),
    "ntk, sequence": ntk(networks.sequence),
}

over_kernels = pytest.mark.parametrize("case", CASES.values(), ids=CASES)

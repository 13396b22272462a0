"""Kernels, for tests of what every kernel has: a new one is a line here."""

from __future__ import annotations

import functools
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


def built(make: Callable[[], Kernel]) -> Callable[[], Kernel]:
    """Make a kernel, and its variables."""

    def made() -> Kernel:
        kernel = make()
        kernel.build((None, networks.D))
        return kernel

    return made


def of_numbers(make: Callable[[], Kernel]) -> Callable[[], Kernel]:
    """Make a kernel whose variables are not where they start."""

    def moved() -> Kernel:
        kernel = built(make)()
        for i, variable in enumerate(kernel.trainable_variables):
            shift = 0.1 * np.cos(i + np.arange(variable.value.numpy().size))
            variable.assign_add(shift.reshape(variable.shape))
        return kernel

    return moved


def small() -> Any:
    """A network with hidden units."""
    return networks.mlp()


def of_some_layers() -> Kernel:
    """Make the NTK by the variables of a network's first layer."""
    network = networks.mlp()
    return kk.kernels.NTK(network, layers=[network.layers[0]])


k = kk.kernels

FORMULAS: dict[str, Callable[[], Kernel]] = {
    f"{name}, {metric}": of_numbers(functools.partial(make, scale=2.0, metric=metric))
    for name, make in {
        "gaussian": k.Gaussian,
        "laplace": k.Laplace,
        "laplace of l1": functools.partial(k.Laplace, distance="l1"),
        "matern 0.5": functools.partial(k.Matern, 0.5),
        "matern 1.5": k.Matern,
        "matern 2.5": functools.partial(k.Matern, 2.5),
    }.items()
    for metric in ("isotropic", "diagonal", "full")
}
"""Kernels of distances."""

FORMULAS |= {
    f"{name} of features": of_numbers(functools.partial(make, features=32))
    for name, make in {
        "gaussian": functools.partial(k.Gaussian, 2.0, "full"),
        "laplace": functools.partial(k.Laplace, 2.0, "diagonal"),
        "laplace of l1": functools.partial(k.Laplace, 2.0, distance="l1"),
        "matern": functools.partial(k.Matern, 1.5, 2.0),
    }.items()
}
"""Kernels of random features."""

FORMULAS |= {
    "polynomial": of_numbers(k.Polynomial),
    "polynomial without offset": of_numbers(
        lambda: k.Polynomial(2, 0.5, 0.0) + k.Gaussian(1.0)
    ),
    "arc-cosine 0": of_numbers(lambda: k.ArcCosine(0, bias=0.5)),
    "arc-cosine 1, deep": of_numbers(lambda: k.ArcCosine(1, depth=3, bias=0.5)),
    "arc-cosine 2": of_numbers(lambda: k.ArcCosine(2, depth=2)),
    "infinite width, relu": of_numbers(lambda: k.InfiniteWidth(3, bias_std=0.3)),
    "infinite width, erf": of_numbers(lambda: k.InfiniteWidth(2, "erf", "nngp", 1.5, 0.1)),
    "infinite width, gelu": of_numbers(lambda: k.InfiniteWidth(1, "gelu", weight_std=2.0)),
    "categorical": of_numbers(lambda: k.Categorical(2.0, "diagonal")),
}

COMBINATIONS: dict[str, Callable[[], Kernel]] = {
    "sum": of_numbers(lambda: k.Gaussian(2.0) + 0.3 * k.Laplace(1.0)),
    "sum with features": of_numbers(lambda: 2.0 * Linear() + k.On(Linear(), [0, -1])),
    "sum of random features": of_numbers(
        lambda: (
            2.0 * k.On(k.Gaussian(2.0, features=16), [0, 1])
            + k.Matern(2.5, 1.0, features=8)
        )
    ),
    "product": of_numbers(lambda: k.Polynomial(2) * k.Matern(1.5, 2.0)),
    "normalized": of_numbers(lambda: k.Normalized(k.Polynomial())),
    "columns": of_numbers(
        lambda: k.On(k.Laplace(1.0, "full"), [0, 2]) * k.On(k.Gaussian(2.0), [1])
    ),
}

CASES = {
    "gaussian": KernelCase(Gaussian),
    "linear": KernelCase(Linear),
    "ntk": ntk(networks.mlp),
    "ntk, trace": ntk(lambda: networks.mlp(c=3), "trace"),
    "ntk, tiles": ntk(networks.mlp, memory_limit=2_000_000),
    "ntk, two inputs": ntk(networks.two_inputs),
    "ntk, named inputs": ntk(networks.named_inputs),
    "ntk, sequence": ntk(networks.sequence),
    "ntk, of a layer": KernelCase(of_some_layers, rows_of_network),
    **{name: KernelCase(make) for name, make in (FORMULAS | COMBINATIONS).items()},
    "deep": KernelCase(built(lambda: k.Deep(small(), k.Gaussian(0.5))), rows_of_network),
    "deep, of features": KernelCase(
        built(lambda: k.Deep(small(), k.Gaussian(0.5, features=12))), rows_of_network
    ),
    "conjugate": KernelCase(lambda: k.Conjugate(small()), rows_of_network),
    "ntk and laplace": KernelCase(built(lambda: k.NTK(small()) + k.Laplace(2.0))),
    "two ntks": KernelCase(lambda: k.NTK(small()) + 0.5 * k.NTK(small())),
}

over_kernels = pytest.mark.parametrize("case", CASES.values(), ids=CASES)

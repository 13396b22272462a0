"""The networks in plain JAX. Parameters are lists of arrays by layer, as in Keras."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import problems

Parameters = dict[str, list[jax.Array]]
Convolve = Callable[[list[jax.Array], jax.Array], jax.Array]


def network(case: str, patches: bool, one_hot: bool) -> Callable[..., jax.Array]:
    """`apply(parameters, x)`, `(n, 1)`.

    Args:
        case: Name in `problems.CASES`.
        patches: Whether a convolution is a product of patches with its kernel.
        one_hot: Whether tokens come as rows of the identity, and the embedding is a
            product, instead of a look-up.
    """
    family = problems.CASES[case].family
    convolve = _convolve_patches if patches else _convolve
    body = {
        "mlp": _mlp,
        "cnn": partial(_cnn, convolve),
        "resnet": partial(_resnet, convolve),
        "text": partial(_text, one_hot),
    }[family]

    def apply(parameters: Parameters, x: jax.Array) -> jax.Array:
        kernel, bias = parameters["output"]
        return body(parameters, x) @ kernel + bias

    return apply


def _mlp(parameters: Parameters, x: jax.Array) -> jax.Array:
    for name in parameters:  # sorted by name under `jit`, which is their order
        if name != "output":
            kernel, bias = parameters[name]
            x = jax.nn.gelu(x @ kernel + bias, approximate=False)
    return x


def _convolve(layer: list[jax.Array], x: jax.Array) -> jax.Array:
    kernel, bias = layer
    layout = ("NHWC", "HWIO", "NHWC")
    return (
        jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", (1, 1), (1, 1), layout)
        + bias
    )


def _convolve_patches(layer: list[jax.Array], x: jax.Array) -> jax.Array:
    kernel, bias = layer
    height, width = x.shape[1:3]
    rows, columns = kernel.shape[:2]
    padding = [(0, 0), (rows // 2,) * 2, (columns // 2,) * 2, (0, 0)]
    padded = jnp.pad(x, padding)
    shifted = [
        padded[:, i : i + height, j : j + width]
        for i in range(rows)
        for j in range(columns)
    ]
    patches = jnp.concatenate(shifted, axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1]) + bias


def _cnn(convolve: Convolve, parameters: Parameters, x: jax.Array) -> jax.Array:
    for i in range(len(parameters) - 1):
        x = jax.nn.relu(convolve(parameters[f"conv_{i}"], x))
    return jnp.mean(x, (1, 2))


def _resnet(convolve: Convolve, parameters: Parameters, x: jax.Array) -> jax.Array:
    for i in range(len(parameters) // 2):
        inner = jax.nn.relu(convolve(parameters[f"conv_{i}a"], x))
        x = x + convolve(parameters[f"conv_{i}b"], inner)
    return jnp.mean(x, (1, 2))


def _text(one_hot: bool, parameters: Parameters, x: jax.Array) -> jax.Array:
    (table,) = parameters["embedding"]
    x = x @ table if one_hot else table[x]
    return jnp.mean(x + _attend(parameters["attention"], x), 1)


def _attend(layer: list[jax.Array], x: jax.Array) -> jax.Array:
    projections, output = zip(layer[:6:2], layer[1:6:2], strict=True), layer[6:]
    query, key, value = (
        jnp.einsum("ntd,dhk->nthk", x, kernel) + bias for kernel, bias in projections
    )
    scores = jnp.einsum("nthk,nshk->nhts", query, key) / math.sqrt(problems.KEY_DIM)
    mixed = jnp.einsum("nhts,nshk->nthk", jax.nn.softmax(scores), value)
    return jnp.einsum("nthk,hkd->ntd", mixed, output[0]) + output[1]

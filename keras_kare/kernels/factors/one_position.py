"""Products of outer products at one position, where `n x P` arrays can be avoided."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_kare.kernels.factors.factor import length


def only(x: tf.Tensor) -> tf.Tensor:
    """Drop the axes of the only group and position: `(n, 1, 1, ...)` to `(n, ...)`."""
    return tf.reshape(x, (-1, *x.shape[3:]))


def pulled(a: tf.Tensor, b: tf.Tensor, v: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return `sum_i v_ij a_i ⊗ b_ik`, `(m, C, 1, p, q)`, and the same without `a`."""
    m, p, (count, q) = length(v, 1), a.shape[1], b.shape[1:]
    each = tf.reshape(v, (-1, m, 1)) * tf.reshape(b, (-1, 1, count * q))
    weighted = tf.reshape(each, (-1, m * count * q))
    kernel = tf.reshape(tf.matmul(a, weighted, transpose_a=True), (p, m, count, 1, q))
    bias = tf.reshape(tf.reduce_sum(weighted, axis=0), (m, count, 1, q))
    return tf.transpose(kernel, (1, 2, 3, 0, 4)), bias


def pushed(
    a: tf.Tensor, b: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None
) -> tf.Tensor:
    """Return `sum_k a_iᵀ W_jk b_ik`, `(n, m)`, for `W` of shape `(m, C, 1, p, q)`."""
    n, m = length(a), length(kernel)
    p, (count, q) = a.shape[1], b.shape[1:]
    moved = tf.reshape(tf.transpose(kernel[:, :, 0], (2, 0, 1, 3)), (p, -1))
    h = tf.matmul(a, moved)
    if bias is not None:
        h += tf.reshape(bias, (1, -1))
    h = tf.reshape(h, (n, m, count * q))
    return tf.reduce_sum(h * tf.reshape(b, (n, 1, count * q)), axis=2)


def hadamard_gram(a: tf.Tensor, b: tf.Tensor, bias: bool) -> tf.Tensor:
    """Return `(A Aᵀ + 1) ∘ (B Bᵀ)` with one product a factor in its gradient.

    For an upstream `G`: `∂A = ((G + Gᵀ) ∘ B Bᵀ) A`, `∂B = ((G + Gᵀ) ∘ (A Aᵀ + 1)) B`.
    Differentiating the two products as TensorFlow does would take two a factor.
    """

    @tf.custom_gradient
    def product(a: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, Any]:
        inputs = tf.matmul(a, a, transpose_b=True)
        inputs = inputs + 1.0 if bias else inputs
        outputs = tf.matmul(b, b, transpose_b=True)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            both = upstream + tf.transpose(upstream)
            return tf.matmul(both * outputs, a), tf.matmul(both * inputs, b)

        return inputs * outputs, gradient

    return product(a, b)

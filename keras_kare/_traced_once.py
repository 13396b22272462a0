"""Functions of tensors that no network is part of: traced once a process.

A training step, a loss and a solver need the same factorisation whatever the network. Its
graph is made once for each set of types, for any sizes, and called from there on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf


class TracedOnce:
    """A function of tensors whose types and ranks alone decide what is traced.

    Args:
        function: Takes tensors, returns tensors; reads nothing else.
    """

    def __init__(self, function: Callable[..., Any]):
        functools.update_wrapper(self, function)
        self._function = function
        self._traces: dict[Any, Any] = {}

    def __call__(self, *arguments: tf.Tensor) -> Any:
        key = tuple((t.dtype, t.shape.rank) for t in arguments)
        if key not in self._traces:
            specs = [tf.TensorSpec([None] * rank, dtype) for dtype, rank in key]
            self._traces[key] = traced(self._function, *specs)
        return self._traces[key](*arguments)


def traced(function: Callable[..., Any], *specs: tf.TensorSpec) -> Callable[..., Any]:
    """A function of tensors as a graph of its own, part of none that is being traced."""
    with tf.init_scope():
        return tf.function(function, autograph=False).get_concrete_function(*specs)

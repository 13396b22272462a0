"""Functions of tensors that no network is part of: traced once a process.

A training step, a loss and a solver need the same factorisation whatever the network. Its
graph is made once for each set of types, for any sizes, and called from there on. What is
needed where it fails is plain Python, and in no graph.
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


class Rescued:
    """A function traced once, and what takes its place where it fails.

    Args:
        function: Takes tensors; returns whether it succeeded, and its values.
        rescue: Takes the same tensors, with values; returns values of the same types.
            Inside graphs its `ValueError` is a `tf.errors.InvalidArgumentError`.
    """

    def __init__(self, function: Callable[..., Any], rescue: Callable[..., Any]):
        self._function, self._rescue = TracedOnce(function), rescue
        self._in_graphs = TracedOnce(self._whole)

    def __call__(self, *arguments: tf.Tensor) -> Any:
        if not tf.executing_eagerly():
            return self._in_graphs(*arguments)
        succeeded, *values = self._function(*arguments)
        return values if succeeded else self._rescue(*arguments)

    def _whole(self, *arguments: tf.Tensor) -> Any:
        succeeded, *values = self._function(*arguments)

        def rescue() -> Any:
            return tf.py_function(self._rescue, arguments, [v.dtype for v in values])

        return tf.cond(succeeded, lambda: values, rescue)


def traced(function: Callable[..., Any], *specs: tf.TensorSpec) -> Callable[..., Any]:
    """Trace a function of tensors as a graph of its own, part of none that is open."""
    with tf.init_scope():
        return tf.function(function, autograph=False).get_concrete_function(*specs)

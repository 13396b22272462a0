"""Seeing each layer's inputs and pre-activations while a network is traced.

For the time of one forward pass, the `call` of every registered layer *type* is
replaced. The replacement looks for a recorder of its own thread and for the exact
type, and is the original in all other cases; the network itself is not touched.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from keras_kare.kernels.structured.registry import registered, rule_for
from keras_kare.kernels.structured.rule import CallRule, LayerRule

_LOCK = threading.RLock()
_ACTIVE = threading.local()


@dataclass(frozen=True)
class Call:
    """One call of one layer: what went in, and what `rule.linear` made of it."""

    layer: keras.layers.Layer
    rule: LayerRule
    inputs: tf.Tensor
    h: tf.Tensor


class Recorder:
    """Collects the calls of layers that `wanted` admits.

    Calls inside control flow, mapped functions and nested `tf.function`s happen in
    another graph, whose tensors cannot be differentiated from here: they are not
    recorded, and their variables are left to the plain Jacobian.
    """

    def __init__(self, tape: tf.GradientTape, wanted: Callable[[keras.layers.Layer], bool]):
        self.tape = tape
        self.wanted = wanted
        self.calls: list[Call] = []
        self.graph = _graph()

    def call(
        self,
        layer: keras.layers.Layer,
        original: Callable[..., Any],
        args: Any,
        kwargs: Any,
    ) -> Any:
        rule = rule_for(layer)
        if rule is None or not self.wanted(layer) or _graph() is not self.graph:
            return original(layer, *args, **kwargs)
        h = rule.linear(layer, *args, **kwargs)
        self.tape.watch(h)
        inputs = args[0] if args else next(iter(kwargs.values()))
        self.calls.append(Call(layer, rule, tf.convert_to_tensor(inputs), h))
        return rule.finish(layer, h)


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Show `recorder` the calls of all registered layer types, in this thread."""
    with _LOCK, contextlib.ExitStack() as restore:
        for layer_type, rule in registered().items():
            own = layer_type.__dict__.get("call")
            _replace(layer_type, _replacement(layer_type, rule))
            restore.callback(_restore, layer_type, own)
        outer = getattr(_ACTIVE, "recorder", None)
        _ACTIVE.recorder = recorder
        try:
            yield recorder
        finally:
            _ACTIVE.recorder = outer


def _replacement(layer_type: Any, rule: LayerRule | CallRule) -> Callable[..., Any]:
    original = layer_type.call

    @functools.wraps(original)
    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        recorder = getattr(_ACTIVE, "recorder", None)
        if recorder is None or type(layer) is not layer_type:
            return original(layer, *args, **kwargs)
        if isinstance(rule, CallRule):
            return rule.call(layer, *args, **kwargs)
        return recorder.call(layer, original, args, kwargs)

    return call


def _replace(layer_type: Any, call: Callable[..., Any]) -> None:
    layer_type.call = call


def _restore(layer_type: Any, own: Callable[..., Any] | None) -> None:
    if own is None:
        del layer_type.call
    else:
        layer_type.call = own


def _graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()

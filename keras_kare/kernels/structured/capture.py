"""Seeing what each layer computes from its variables while a network is traced.

For the time of one forward pass, the `call` of every registered layer *type* is
replaced. The replacement looks for a recorder of its own thread and for the exact
type, and is the original in all other cases; the network itself is not touched.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from keras_kare.kernels.structured.registry import registered, rule_for
from keras_kare.kernels.structured.rule import MakeFactor

_LOCK = threading.RLock()
_ACTIVE = threading.local()


@dataclass(frozen=True)
class Site:
    """An intermediate result that was watched for some of a layer's variables."""

    h: tf.Tensor
    variables: tuple[keras.Variable, ...]
    factor: MakeFactor


class Recorder:
    """Collects what the rules of layers that `wanted` admits watch.

    Without a tape, the rules run but nothing is watched.

    Layers inside control flow, mapped functions and nested `tf.function`s run in
    another graph, whose tensors cannot be differentiated from here: they are not
    recorded, and their variables are left to the plain Jacobian.
    """

    def __init__(
        self, tape: tf.GradientTape | None, wanted: Callable[[keras.layers.Layer], bool]
    ):
        self.tape = tape
        self.wanted = wanted
        self.sites: list[Site] = []
        self.graph = _graph()

    def call(
        self,
        layer: keras.layers.Layer,
        original: Callable[..., Any],
        args: Any,
        kwargs: Any,
    ) -> Any:
        rule = rule_for(layer)
        outputs = NotImplemented
        if rule is not None:
            if self.wanted(layer) and _graph() is self.graph:
                outputs = rule.call(layer, self._watch, *args, **kwargs)
            elif rule.corrects:
                outputs = rule.call(layer, _only_return, *args, **kwargs)
        return original(layer, *args, **kwargs) if outputs is NotImplemented else outputs

    def _watch(
        self, h: tf.Tensor, variables: Sequence[keras.Variable], factor: MakeFactor
    ) -> tf.Tensor:
        if self.tape is None:
            return h
        self.tape.watch(h)
        self.sites.append(Site(h, tuple(variables), factor))
        return h


def _only_return(
    h: tf.Tensor, variables: Sequence[keras.Variable], factor: MakeFactor
) -> tf.Tensor:
    return h


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Show `recorder` the calls of all registered layer types, in this thread."""
    with _LOCK, contextlib.ExitStack() as restore:
        for layer_type in registered():
            own = layer_type.__dict__.get("call")
            _replace(layer_type, _replacement(layer_type))
            restore.callback(_restore, layer_type, own)
        outer = getattr(_ACTIVE, "recorder", None)
        _ACTIVE.recorder = recorder
        try:
            yield recorder
        finally:
            _ACTIVE.recorder = outer


def _replacement(layer_type: Any) -> Callable[..., Any]:
    original = layer_type.call

    @functools.wraps(original)
    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        recorder = getattr(_ACTIVE, "recorder", None)
        if recorder is None or type(layer) is not layer_type:
            return original(layer, *args, **kwargs)
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

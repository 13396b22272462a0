"""Seeing what each layer computes from its variables while a network is traced.

For the time of one forward pass, the `call` of every registered layer *type* is
replaced. The replacement looks for a recorder of its own thread and for the exact
type, and is the original in all other cases; the network itself is not touched. A
`tf.function` inside the network is traced into the same graph, or in a copy of its own, so
that nothing of our trace stays in the user's.
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

from keras_kare.kernels.factors import Factor
from keras_kare.kernels.jacobian import outputs_of
from keras_kare.kernels.structured.registry import registered, rule_for
from keras_kare.kernels.structured.rule import LayerRule, MakeFactor
from keras_kare.kernels.structured.untouched import (
    Function,
    from_its_cache,
    is_of_libraries,
    of_our_own,
)

_LOCK = threading.RLock()
_ACTIVE = threading.local()


@dataclass(frozen=True)
class Site:
    """An intermediate result that was watched for some of a layer's variables.

    Attributes:
        h: The result.
        variables: The variables that it is computed from.
        factor: Makes per-example gradients from gradients by `h`.
        inputs: The tensors that the layer was called with.
        through: What else the variables enter by; see `Watcher`.
    """

    h: tf.Tensor
    variables: tuple[keras.Variable, ...]
    factor: MakeFactor
    inputs: tuple[tf.Tensor, ...] = ()
    through: Sequence[tf.Tensor] = ()


class Recorder:
    """A collection of what the rules of layers that `wanted` admits watch.

    Without a tape, the rules run but nothing is watched.

    Layers inside control flow, mapped functions and nested `tf.function`s run in
    another graph, whose tensors cannot be differentiated from here: they are not
    recorded, and their variables are left to the plain Jacobian.

    Attributes:
        sites: What was watched.
        functions: Whether the network called a `tf.function` of its author's.
        as_called: Whether these do what they were traced for, not what their Python says.
    """

    as_called = False

    def __init__(
        self, tape: tf.GradientTape | None, wanted: Callable[[keras.layers.Layer], bool]
    ):
        self.tape = tape
        self.wanted = wanted
        self.sites: list[Site] = []
        self.functions = False
        self.graph = current_graph()

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
            if self.wanted(layer) and current_graph() is self.graph:
                given = keras.tree.flatten((args, kwargs))
                inputs = tuple(part for part in given if tf.is_tensor(part))
                watch = functools.partial(self._watch, layer, rule, inputs)
                outputs = rule.call(layer, watch, *args, **kwargs)
            elif rule.corrects:
                outputs = rule.call(layer, _only_return, *args, **kwargs)
        if outputs is NotImplemented:
            outputs = original(layer, *args, **kwargs)
        if rule is not None and rule.loses_rows:
            _set_rows(outputs, keras.tree.flatten((args, kwargs))[0])
        return outputs

    def _watch(
        self,
        layer: keras.layers.Layer,
        rule: LayerRule,
        inputs: tuple[tf.Tensor, ...],
        h: tf.Tensor,
        variables: Sequence[keras.Variable],
        factor: MakeFactor,
        through: Sequence[tf.Tensor] = (),
    ) -> tf.Tensor:
        if self.tape is None:
            return h
        if not isinstance(variables, list | tuple):
            raise TypeError(
                f"{_name(rule, layer)} must give `watch` a list of the variables that `h` "
                f"is computed from. Received: {type(variables).__name__}"
            )
        self.tape.watch(h)

        def checked(asked: list[keras.Variable], gradients: tf.Tensor) -> Factor:
            found = factor(asked, gradients)
            if not isinstance(found, Factor):
                raise TypeError(
                    f"{_name(rule, layer)} must make a factor, such as "
                    "`keras_kare.kernels.FullFactor(...)`, of the gradients by `h`. "
                    f"Received: {type(found).__name__}"
                )
            return found

        self.sites.append(Site(h, tuple(variables), checked, inputs, through))
        return h


def _name(rule: LayerRule, layer: keras.layers.Layer) -> str:
    return f"The rule {type(rule).__name__} of layer {layer.name!r}"


def _set_rows(outputs: Any, inputs: Any) -> None:
    """Tell TensorFlow that outputs have as many rows as inputs."""
    if tf.is_symbolic_tensor(outputs) and isinstance(outputs, tf.Tensor):
        outputs.set_shape(inputs.shape[:1].concatenate(outputs.shape[1:]))


def _only_return(
    h: tf.Tensor,
    variables: Sequence[keras.Variable],
    factor: MakeFactor,
    through: Sequence[tf.Tensor] = (),
) -> tf.Tensor:
    return h


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Show `recorder` the calls of all registered layer types, in this thread."""
    with _LOCK, contextlib.ExitStack() as restore:
        kinds: list[Any] = list(registered())
        for layer_type in kinds:
            own = layer_type.__dict__.get("call")
            layer_type.call = _replacement(layer_type)
            restore.callback(_restore, layer_type, own)
        own = Function.__call__
        Function.__call__ = _without_its_cache(own)
        restore.callback(setattr, Function, "__call__", own)
        outer = getattr(_ACTIVE, "recorder", None)
        _ACTIVE.recorder = recorder
        try:
            yield recorder
        finally:
            _ACTIVE.recorder = outer


class Unruled(Recorder):
    """A recorder that lets every layer run its own `call`."""

    def __init__(self) -> None:
        super().__init__(None, lambda layer: False)

    def call(
        self,
        layer: keras.layers.Layer,
        original: Callable[..., Any],
        args: Any,
        kwargs: Any,
    ) -> Any:
        return original(layer, *args, **kwargs)


class AsCalled(Unruled):
    """A recorder that runs as Keras does: a `tf.function` that has a trace uses it."""

    as_called = True


def run(network: keras.Model, x: Any, recorder: Recorder | None = None) -> tf.Tensor:
    """Run the network for its outputs, `(n, c)`, its layers shown to `recorder`.

    Without one, no layer is watched; those that TensorFlow differentiates wrongly still go
    through their rules.
    """
    with recording(recorder or Recorder(None, lambda layer: False)):
        return outputs_of(network, x)


def _replacement(layer_type: Any) -> Callable[..., Any]:
    original = layer_type.call

    @functools.wraps(original)
    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        recorder = getattr(_ACTIVE, "recorder", None)
        if recorder is None or type(layer) is not layer_type:
            return original(layer, *args, **kwargs)
        return recorder.call(layer, original, args, kwargs)

    return call


def _without_its_cache(original: Callable[..., Any]) -> Callable[..., Any]:
    """Replace the call of a `tf.function` that is met while a network runs for us."""

    @functools.wraps(original)
    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = getattr(_ACTIVE, "recorder", None)
        if recorder is None:
            return original(function, *args, **kwargs)
        recorder.functions |= not is_of_libraries(function.python_function)
        if recorder.as_called:
            found = from_its_cache(function, args, kwargs)
            if found is not NotImplemented:
                return found
        own = of_our_own(function)
        if isinstance(own, Function):
            return original(own, *args, **kwargs)
        return own(*args, **kwargs)

    return call


def _restore(layer_type: Any, own: Callable[..., Any] | None) -> None:
    if own is None:
        del layer_type.call
    else:
        layer_type.call = own


def current_graph() -> Any:
    """Return the graph that is being traced, or `None` where operations run at once."""
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()

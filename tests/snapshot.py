"""Everything about a user's network that calls of ours must leave as it was."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

KNOWN = ("_tracker", "_inbound_nodes", "_outbound_nodes")
"""What Keras knows about a network beside the network: lengths are enough."""

CODE = (types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType)
PLAIN = (bool, int, float, complex, str, bytes, type(None), type, np.dtype, tf.DType)


def snapshot(network: Any) -> dict[str, Any]:
    """A description of a network that equals an earlier one where nothing changed.

    Attributes of the network and of all that it holds, to any depth: plain ones by
    value, others by identity; layers' `call`, of the object and of its class; how often
    each `tf.function` was traced; what is in caches and lists; losses of its last call.
    """
    found: dict[str, Any] = {}
    _describe("", network, found, set())
    for i, layer in enumerate(_layers(network)):
        name = f"layer {i} {layer.name!r}"
        found[f"{name}, call"] = [id(vars(t).get("call")) for t in type(layer).__mro__]
        found[f"{name}, traces"] = _traces(layer.call)
        found[f"{name}, trainable"] = layer.trainable, len(layer.trainable_weights)
    for variable in network.variables:
        kind = "trainable" if variable.trainable else "fixed"
        value = np.asarray(variable.value).tolist()
        found[f"{kind} {variable.path} {id(variable)}"] = value
    found["losses"] = [_loss(loss) for loss in network.losses]
    found["floatx"] = keras.config.floatx(), keras.config.dtype_policy().name
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is not as it was, in words."""
    missing = object()
    return [
        f"{key}: {before.get(key, '(nothing)')!r} became {after.get(key, '(nothing)')!r}"
        for key in sorted({*before, *after})
        if before.get(key, missing) != after.get(key, missing)
    ]


def _layers(network: Any) -> Iterator[Any]:
    yield network
    yield from network._flatten_layers(include_self=False)


def _describe(path: str, value: Any, found: dict[str, Any], seen: set[int]) -> None:
    if isinstance(value, PLAIN):
        found[path] = value
        return
    found[path] = type(value).__name__, id(value)
    if id(value) in seen or _opaque(value):
        return
    seen.add(id(value))
    if isinstance(value, dict):
        for key, part in value.items():
            _describe(f"{path}[{key!r}]", part, found, seen)
    elif isinstance(value, list | tuple | set | frozenset):
        found[f"{path} length"] = len(value)
        for i, part in enumerate(value):
            _describe(f"{path}[{i}]", part, found, seen)
    elif _traces(value) is not None:
        found[f"{path} traces"] = _traces(value)
    elif hasattr(value, "__dict__"):
        for key, part in vars(value).items():
            name = f"{path}.{key}".lstrip(".")
            if key in KNOWN and isinstance(part, list):
                found[f"{name} length"] = len(part)
            elif key not in KNOWN:
                _describe(name, part, found, seen)


def _opaque(value: Any) -> bool:
    """Not looked into: arrays, variables (by value, elsewhere), modules, code."""
    arrays = (np.ndarray, tf.Tensor, tf.Variable, keras.Variable, keras.KerasTensor)
    return isinstance(value, (*arrays, *CODE))


def _traces(function: Any) -> int | None:
    """How often a `tf.function` was traced; of other objects `None`."""
    if isinstance(function, CODE[:1]):
        return None
    count = getattr(function, "experimental_get_tracing_count", None)
    return None if count is None else count()


def _loss(loss: Any) -> Any:
    """A number; a tensor of a graph that is no longer there has none."""
    loss = tf.convert_to_tensor(loss)
    return float(loss) if hasattr(loss, "numpy") else f"a symbolic tensor {loss.name}"

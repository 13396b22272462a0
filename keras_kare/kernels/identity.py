"""What a network is, besides the values of its variables.

A kernel's values depend on the weights, on which of them train, and on everything that
the layers' Python does with them: activations, connections, numbers in attributes. Traces
keep all of that as it was. So it is looked at before a trace or a solution is used again.
"""

from __future__ import annotations

import hashlib
import json
import sys
import types
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare.kernels.structured.untouched import walk

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
"""Types whose values say all there is to say."""

_UNIMPORTANT = frozenset(
    {
        "autocast",
        "build",
        "built",
        "call_signature_parameters",
        "compiled",
        "history",
        "input_spec",
        "jit_compile",
        "loss",
        "name",
        "optimizer",
        "output_names",
        "predict_function",
        "quantize",
        "run_eagerly",
        "steps_per_execution",
        "stop_training",
        "supports_jit",
        "test_function",
        "train_function",
        "unrolled_steps_per_execution",
    }
)
"""Attributes of layers and models that do not change what they compute."""

_OF_WEIGHTS = ("_initializer", "_regularizer", "_constraint")
"""Endings of names of attributes that are about the making or training of weights."""


class Identity:
    """The identity of a network, computed again only where an attribute has changed.

    Args:
        network: The network, or any layer.
    """

    def __init__(self, network: keras.layers.Layer):
        self._network = network
        self._seen: list[Any] | None = None
        self._digest = ""

    @property
    def digest(self) -> str:
        """A hash; equal for networks that compute the same from equal weights.

        Names do not matter. What is changed inside an array or an object that a layer
        holds is seen once that array or object is another.
        """
        seen = [
            part
            for layer in walk(self._network)
            for name, value in vars(layer).items()
            if _matters(name)
            for part in (name, value, layer.dtype_policy)
        ]
        if self._seen is None or not _identical(seen, self._seen):
            self._digest, self._seen = architecture(self._network), seen
        return self._digest


def architecture(network: keras.layers.Layer) -> str:
    """A hash of a network's layers, their attributes, and how they are connected."""
    digest = hashlib.blake2b(digest_size=16)
    layers = walk(network)
    for layer in layers:
        kind = type(layer)
        digest.update(f"{kind.__module__}.{kind.__qualname__}".encode())
        digest.update(f"{layer.compute_dtype} {layer.variable_dtype}".encode())
        if not kind.__module__.startswith("keras."):
            digest.update(_of_code(kind.call).encode())
        for name, value in sorted(vars(layer).items()):
            # Keras adds some when it loads a layer, as false as if they were not there.
            if _matters(name) and value is not None and value is not False:
                digest.update(f"{name}={_of_value(value)};".encode())
        digest.update(_connections(layer, layers).encode())
    return digest.hexdigest()


def made_by() -> str:
    """The versions that an identity holds for: others may write attributes otherwise."""
    return f"keras {keras.__version__}, python {sys.version_info[0]}.{sys.version_info[1]}"


def _matters(name: str) -> bool:
    return not (name.startswith("_") or name in _UNIMPORTANT or name.endswith(_OF_WEIGHTS))


def _identical(these: list[Any], those: list[Any]) -> bool:
    return len(these) == len(those) and all(
        a is b for a, b in zip(these, those, strict=True)
    )


def _connections(layer: Any, layers: list[Any]) -> str:
    """How a functional model connects its layers, with their places for names."""
    if not isinstance(layer, keras.Model) or "output_names" not in vars(layer):
        return ""
    try:
        config = layer.get_config()
    except NotImplementedError:
        return ""  # a layer that cannot be written down; attributes must do
    parts = {k: config.get(k) for k in ("layers", "input_layers", "output_layers")}
    nodes = [
        (part.get("name"), part.get("inbound_nodes"))
        for part in parts.pop("layers") or []
        if isinstance(part, dict)
    ]
    text = json.dumps([nodes, parts], sort_keys=True, default=_without_address)
    for place, other in enumerate(layers):
        text = text.replace(json.dumps(other.name), f"#{place}")
    return text


def _of_value(value: Any) -> str:
    """What a trace may have kept of an attribute."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, keras.layers.Layer | keras.Variable | tf.Variable):
        return type(value).__name__  # layers come by themselves, variables by value
    if isinstance(value, np.ndarray) or tf.is_tensor(value):
        if tf.is_symbolic_tensor(value) or not hasattr(value, "__array__"):
            return type(value).__name__
        array = np.asarray(value)
        kept = hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=8)
        return f"{array.dtype}{array.shape}{kept.hexdigest()}"
    if isinstance(value, dict):
        return repr([(repr(k), _of_value(v)) for k, v in value.items()])
    if isinstance(value, list | tuple | set | frozenset):
        parts = [_of_value(part) for part in value]
        return repr(sorted(parts) if isinstance(value, set | frozenset) else parts)
    if callable(value):
        return _of_code(value)
    if hasattr(value, "get_config"):
        return f"{type(value).__qualname__}{_without_names(value.get_config())}"
    return type(value).__qualname__


def _of_code(function: Any) -> str:
    """A function by its module, its name, its code and what it closes over."""
    function = getattr(function, "python_function", function)  # of a `tf.function`
    function = getattr(function, "__func__", function)
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
    if hasattr(function, "get_config") and not isinstance(function, type):
        name = f"{type(function).__qualname__}{_without_names(function.get_config())}"
    code = getattr(function, "__code__", None)
    if code is None or name.startswith(("keras.", "tensorflow.")):
        return name
    cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
    plain = [repr(c) for c in cells if isinstance(c, _PLAIN)]
    constants = [c for c in code.co_consts if not isinstance(c, types.CodeType)]
    return f"{name}{code.co_code.hex()}{constants!r}{code.co_names}{plain}"


def _filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _without_names(config: Any) -> str:
    config = {k: v for k, v in dict(config).items() if k != "name"}
    return json.dumps(config, sort_keys=True, default=_without_address)


def _without_address(value: Any) -> str:
    """For what is no JSON: nothing that differs from process to process."""
    return type(value).__qualname__

"""What a network is, besides the values of its variables.

A kernel's values depend on the weights, on which of them train, and on everything that
the layers' Python does with them: activations, connections, numbers in attributes. Traces
keep all of that as it was. So it is looked at before a trace or a solution is used again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
import uuid
from typing import Any

import keras
import tensorflow as tf

from keras_kare.kernels.reading import Reader
from keras_kare.kernels.structured.untouched import walk

_UNIMPORTANT = frozenset({"autocast", "build", "built", "call_signature_parameters"})
_UNIMPORTANT |= {"input_spec", "name", "quantize", "supports_jit"}
"""Attributes of layers that do not change what they compute."""

_OF_TRAINING = frozenset({"compiled", "history", "jit_compile", "loss", "optimizer"})
_OF_TRAINING |= {"output_names", "predict_function", "run_eagerly", "steps_per_execution"}
_OF_TRAINING |= {"stop_evaluating", "stop_predicting", "stop_training", "test_function"}
_OF_TRAINING |= {"train_function", "unrolled_steps_per_execution"}
"""Attributes of models that do not, either."""


@functools.cache
def _internal() -> frozenset[str]:
    """Return the attributes that Keras keeps for itself in every layer or model.

    Looked at when first needed: a layer that is made at import would fix the types of all
    that come after it.
    """
    found = {
        name
        for kind in (keras.layers.Layer, keras.Sequential)
        for name in vars(kind())
        if name.startswith("_")
    }
    more = {"_functional", "_nodes", "_operations", "_operations_by_depth", "_layers"}
    return frozenset(found | more)


_PROCESS = uuid.uuid4().hex
"""Of objects that cannot be read, only this process knows whether they are the same."""

_UNREAD = "unread "
"""How an identity begins that has such objects in it."""

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
        """A hash, equal for networks that compute the same from equal weights.

        Names do not matter. What is changed inside an array or an object that a layer
        holds is seen once that array or object is another.
        """
        layers = walk(self._network)
        seen = [
            part
            for layer in layers
            for name, value in vars(layer).items()
            if _matters(layer, name)
            for part in (name, value, layer.dtype_policy)
        ]
        for operation in _operations(layers):
            seen += _settings(operation).values()
        if self._seen is None or not identical(seen, self._seen):
            with tf.init_scope():  # tables cannot be read while a graph is traced
                self._digest, self._seen = architecture(self._network), seen
        return self._digest

    @property
    def common(self) -> str | None:
        """A text that is equal where networks have the same graphs; `None` where unknown.

        Known where all Python is Keras' own: what a user's function reads may be another
        thing tomorrow.
        """
        if not _is_of_keras(self._network):
            return None
        try:
            configs = _configs(self._network)
        except (NotImplementedError, TypeError, ValueError):  # Keras cannot write it
            return None
        return f"{self.digest} {_wiring(self._network)} {configs}"


def _is_of_keras(network: keras.layers.Layer) -> bool:
    """Tell whether no Python of others takes part, and no loss of a layer's outputs."""
    layers = walk(network)
    operations = _operations(layers)
    if not all(type(part).__module__.startswith("keras.") for part in layers + operations):
        return False
    for layer in layers:
        if not layer.built or getattr(layer, "activity_regularizer", None) is not None:
            return False
    reader = Reader([*layers, *network.variables])
    for layer in layers:
        reader.of([value for name, value in vars(layer).items() if _matters(layer, name)])
    for operation in operations:
        reader.of(_settings(operation))
    return not reader.unread and not reader.foreign


def _operations(layers: list[Any]) -> list[Any]:
    """List what functional models among these call besides layers, as `keras.ops.mean`."""
    found = {
        id(operation): operation
        for layer in layers
        for operation in vars(layer).get("_operations", ())
        if not isinstance(operation, keras.layers.Layer)
    }
    return list(found.values())


def _settings(operation: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in sorted(vars(operation).items())
        if not name.startswith("_") and name != "name"
    }


def _wiring(network: keras.layers.Layer) -> str:
    """Describe all variables: shapes and types, which of them train, and who has which."""
    places = {id(v): i for i, v in enumerate(network.variables)}
    specs = [(tuple(v.shape), v.dtype, v.trainable) for v in network.variables]
    owners = [
        [places.get(id(v)) for v in layer.variables]
        + [
            (name, places.get(id(v)))
            for name, v in vars(layer).items()
            if isinstance(v, keras.Variable)
        ]
        for layer in walk(network)
    ]
    trains = [places[id(v)] for v in network.trainable_variables]
    return f"{specs}{owners}{trains}{keras.config.floatx()}"


def _configs(network: keras.layers.Layer) -> str:
    """Describe what layers of Keras keep in private, but for names and initializers."""
    layers = [layer for layer in walk(network) if not isinstance(layer, keras.Model)]
    return str([_config(layer) for layer in layers])


def _config(layer: keras.layers.Layer) -> str:
    return json.dumps(_described(layer.get_config()), default=repr)


def _described(config: Any) -> Any:
    if isinstance(config, dict):
        return {
            str(name): _described(value)
            for name, value in config.items()
            if name != "name" and not str(name).endswith(_OF_WEIGHTS)
        }
    return [_described(v) for v in config] if isinstance(config, list | tuple) else config


def architecture(network: keras.layers.Layer) -> str:
    """Return a hash of a network's layers, their attributes, and how they are connected."""
    digest, layers, unread = hashlib.blake2b(digest_size=16), walk(network), False
    operations = _operations(layers)
    known = [*layers, *network.variables]
    for layer in layers:
        kind, reader = type(layer), Reader(known)
        digest.update(f"{kind.__module__}.{kind.__qualname__}".encode())
        digest.update(f"{layer.compute_dtype} {layer.variable_dtype}".encode())
        if not kind.__module__.startswith("keras."):
            digest.update(reader.of_function(kind.call).encode())
        for name, value in sorted(vars(layer).items()):
            # Keras adds some when it loads a layer, as false as if they were not there.
            if _matters(layer, name) and value is not None and value is not False:
                digest.update(f"{name}={reader.of(value)};".encode())
        if isinstance(layer, keras.layers.TextVectorization):  # how it splits is private
            digest.update(_config(layer).encode())
        digest.update(_connections(layer, layers + operations, reader).encode())
        unread = unread or reader.unread
    for operation in operations:
        kind, reader = type(operation), Reader(known)
        digest.update(f"{kind.__module__}.{kind.__qualname__}".encode())
        if not kind.__module__.startswith("keras."):
            digest.update(reader.of_function(kind.call).encode())
        digest.update(reader.of(_settings(operation)).encode())
        unread = unread or reader.unread
    return f"{_UNREAD if unread else ''}{digest.hexdigest()}"


def digest(*parts: Any) -> str:
    """Return a hash of settings, and of identities of parts; of unread ones, unread."""
    hashed = hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
    unread = any(isinstance(part, str) and _UNREAD in part for part in parts)
    return f"{_UNREAD}{hashed}" if unread else hashed


def made_by(architecture: str) -> str:
    """Name who can compare an identity: other versions describe the same in other words."""
    versions = (
        f"keras {keras.__version__}, python {sys.version_info[0]}.{sys.version_info[1]}"
    )
    return f"{versions}, {_PROCESS}" if _UNREAD in architecture else versions


def _matters(layer: keras.layers.Layer, name: str) -> bool:
    if name in _UNIMPORTANT or name.endswith(_OF_WEIGHTS):
        return False
    if name in _OF_TRAINING and isinstance(layer, keras.Model):
        return False
    if not name.startswith("_"):
        return True
    # What is private in layers of Keras is Keras' own business, and changes as they run.
    kept_by_keras = name in _internal() or name.startswith(("_self_", "_compile"))
    return not kept_by_keras and not type(layer).__module__.startswith("keras.")


def identical(these: list[Any], those: list[Any]) -> bool:
    """Tell whether two lists hold the same objects."""
    return len(these) == len(those) and all(
        a is b for a, b in zip(these, those, strict=True)
    )


def _connections(layer: Any, parts_of_it: list[Any], reader: Reader) -> str:
    """Describe how a functional model connects its layers, with their places for names."""
    if not isinstance(layer, keras.Model) or "output_names" not in vars(layer):
        return ""
    try:
        config = layer.get_config()
    except (NotImplementedError, TypeError, ValueError):  # a layer that Keras cannot write
        return reader.of_unread(layer)
    parts = {k: config.get(k) for k in ("layers", "input_layers", "output_layers")}
    nodes = [
        (part.get("name"), part.get("inbound_nodes"))
        for part in parts.pop("layers") or []
        if isinstance(part, dict)
    ]
    text = json.dumps([nodes, parts], sort_keys=True, default=lambda v: type(v).__name__)
    for place, other in enumerate(parts_of_it):
        text = text.replace(json.dumps(other.name), f"#{place}")
    return f"{text}{_order_of_names(layer)}"


def _order_of_names(model: Any) -> list[int]:
    """Return how inputs are sorted by name: a dictionary of them is taken apart so.

    Keras numbers the names that it gives, in the order of their making.
    """
    names = [
        [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", t.name)]
        for t in model.inputs
    ]
    return sorted(range(len(names)), key=names.__getitem__)

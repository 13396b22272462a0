"""Saying in words what an attribute of a layer is: its values, its code, its parts."""

from __future__ import annotations

import functools
import hashlib
import types
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare.kernels.structured.untouched import is_of_libraries

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
"""Types whose values say all there is to say."""

_FUNCTIONS = types.FunctionType, types.MethodType, types.BuiltinMethodType

_TABLES = tf.lookup.StaticHashTable, tf.lookup.experimental.MutableHashTable

_DEPTH = 8
"""How deep objects in objects are read."""


class Reader:
    """A reader of what a trace may have kept of attributes.

    Args:
        known: Layers and variables that Keras knows of, in their order.

    Attributes:
        unread: Whether it met an object that it could not read.
        foreign: Whether it met Python that is not of Keras, TensorFlow or NumPy.
    """

    def __init__(self, known: list[Any]):
        self._places = {id(part): place for place, part in enumerate(known)}
        self.unread = self.foreign = False
        self._inside: list[Any] = []
        self._hidden = 0

    def of(self, value: Any) -> str:
        """Describe any value; what holds itself is read once."""
        if isinstance(value, _PLAIN):
            return repr(value)
        if isinstance(value, keras.layers.Layer | keras.Variable | tf.Variable):
            if id(value) in self._places and self._hidden:
                return f"{type(value).__name__}#{self._places[id(value)]}"
            if self._hidden or isinstance(value, tf.Variable):
                return self.of_unread(value)
            return type(value).__name__  # layers come by themselves, variables by value
        if any(value is outer for outer in self._inside):
            return "itself"
        if len(self._inside) > _DEPTH:
            return self.of_unread(value)
        self._inside.append(value)
        try:
            return self._of_parts(value)
        finally:
            self._inside.pop()

    def _of_parts(self, value: Any) -> str:
        if isinstance(value, np.ndarray | np.generic) or tf.is_tensor(value):
            return self._of_array(value)
        if isinstance(value, dict):
            return repr([(self.of(k), self.of(v)) for k, v in value.items()])
        if isinstance(value, list | tuple | set | frozenset):
            parts = [self.of(part) for part in value]
            return repr(sorted(parts) if isinstance(value, set | frozenset) else parts)
        if isinstance(value, type | types.ModuleType):
            known = getattr(value, "__module__", "").startswith(("keras.", "tensorflow."))
            self.foreign = self.foreign or not known
            return f"{getattr(value, '__module__', '')}.{value.__name__}"
        if isinstance(value, functools.partial):
            return f"partial{self._of_hidden((value.func, value.args, value.keywords))}"
        if isinstance(value, _FUNCTIONS):
            return self.of_function(value)
        if (python := getattr(value, "python_function", None)) is not None:
            return self.of(python)
        return self._of_object(value)

    def _of_hidden(self, value: Any) -> str:
        """Describe what is in functions and objects, where Keras looks for no layers."""
        self._hidden += 1
        try:
            return self.of(value)
        finally:
            self._hidden -= 1

    def _of_array(self, value: Any) -> str:
        if tf.is_symbolic_tensor(value) or not hasattr(value, "__array__"):
            return type(value).__name__
        array = np.ascontiguousarray(value)
        if array.dtype.hasobject:
            return self.of(array.tolist())
        hashed = hashlib.blake2b(array.tobytes(), digest_size=8).hexdigest()
        return f"{array.dtype}{array.shape}{hashed}"

    def of_function(self, function: Any) -> str:
        """Describe a function by its name, code, defaults, and what it has bound."""
        bound = getattr(function, "__self__", None)
        name = f"{function.__module__}.{function.__qualname__}"
        function = getattr(function, "__func__", function)
        code = getattr(function, "__code__", None)
        if code is None or is_of_libraries(function):
            return (
                name
                if isinstance(bound, type(None) | types.ModuleType)
                else (f"{name} of {self._of_hidden(bound)}")
            )
        self.foreign = True
        cells = [c.cell_contents for c in function.__closure__ or () if _filled(c)]
        kept = (function.__defaults__, function.__kwdefaults__, cells, bound)
        return f"{name}{self._of_code(code)}{self._of_hidden(kept)}"

    def _of_code(self, code: types.CodeType) -> str:
        constants = [
            self._of_code(c) if isinstance(c, types.CodeType) else repr(c)
            for c in code.co_consts
        ]
        return f"{code.co_code.hex()}{constants}{code.co_names}"

    def _of_object(self, value: Any) -> str:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if kind.startswith(("keras.", "tensorflow.")) and hasattr(value, "get_config"):
            return f"{kind}{self.of(_without_name(value.get_config()))}"
        if isinstance(value, _TABLES):
            with tf.init_scope():  # also while a function is being traced
                keys, values = (np.asarray(part).tolist() for part in value.export())
            return f"{kind}{sorted(map(repr, zip(keys, values, strict=True)))}"
        if kind.startswith("keras."):
            return kind
        if kind.startswith("tensorflow."):
            return self.of_unread(value)
        self.foreign = True
        if (kept := getattr(value, "__dict__", None)) is None:
            return self.of_unread(value)
        called = vars(type(value)).get("__call__")
        code = self.of_function(called) if isinstance(called, types.FunctionType) else ""
        return f"{kind}{code}{self._of_hidden(dict(kept))}"

    def of_unread(self, value: Any) -> str:
        """Name which object it is, in this process."""
        self.unread = True
        return f"{type(value).__qualname__}@{id(value)}"


def _filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _without_name(config: Any) -> dict[str, Any]:
    return {k: v for k, v in dict(config).items() if k != "name"}

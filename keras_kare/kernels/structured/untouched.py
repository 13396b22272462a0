"""Running a user's network without leaving anything behind in it.

A network that is traced for a kernel runs its user's Python: layers note losses, and may
keep results, count calls, or fill the caches of a `tf.function`. Tensors of our graphs
that stay in such places fail later, out of their graph, in the user's own calls.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import tensorflow as tf

Function: Any = type(tf.function(lambda: None))
"""The type of what `tf.function` returns."""

_MANY = 10_000
"""Containers of more items hold data, and are not searched for layers."""

_ACTIVE = threading.local()


def walk(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """List a layer and all layers that it holds, in attributes or containers, once each."""
    found: dict[int, keras.layers.Layer] = {}
    waiting: list[Any] = [layer]
    while waiting:
        item = waiting.pop()
        if isinstance(item, keras.layers.Layer):
            if id(item) not in found:
                found[id(item)] = item
                waiting.extend(reversed(list(vars(item).values())))
        elif isinstance(item, dict | list | tuple | set) and len(item) <= _MANY:
            parts = item.values() if isinstance(item, dict) else item
            waiting.extend(reversed(list(parts)))
    return list(found.values())


@contextlib.contextmanager
def restored(network: keras.layers.Layer) -> Iterator[None]:
    """Put the attributes of a network and its layers back to what they were.

    A network that makes variables meanwhile is being built, and keeps what it has become.
    """
    count = len(network.variables)
    before = [(layer, _attributes(layer)) for layer in walk(network)]
    try:
        yield
    finally:
        if len(network.variables) == count:
            for layer, attributes in before:
                _put_back(layer, attributes)


@contextlib.contextmanager
def untouched(network: keras.layers.Layer) -> Iterator[keras.StatelessScope]:
    """Do as `restored`, and keep the values of variables that the network assigns.

    The losses that it adds are in the scope that this yields, and nowhere else. Inside
    another such block this one does nothing.
    """
    outer = getattr(_ACTIVE, "scope", None)
    if outer is not None:
        yield outer
        return
    with restored(network):
        try:
            with keras.StatelessScope(collect_losses=True) as scope:
                _ACTIVE.scope = scope
                yield scope
        finally:
            _ACTIVE.scope = None


def aside(work: Callable[[], Any]) -> Any:
    """Return the result of `work`, done in a thread of its own.

    Eager even while a function is being traced, and out of sight of the caller's tapes and
    scopes.
    """
    policy = keras.config.dtype_policy()

    def with_policy() -> Any:
        keras.config.set_dtype_policy(policy)  # each thread has its own
        return work()

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(with_policy).result()


Saved = tuple[dict[str, Any], list[tuple[Any, Any]]]
"""The attributes of a layer, and each container in them with a copy of what it holds."""


def _attributes(layer: Any) -> Saved:
    attributes, containers = dict(vars(layer)), {}
    waiting = list(attributes.values())
    while waiting:
        item = waiting.pop()
        if not isinstance(item, list | dict | set | tuple) or id(item) in containers:
            continue
        containers[id(item)] = item, item if isinstance(item, tuple) else item.copy()
        if len(item) <= _MANY:
            waiting.extend(item.values() if isinstance(item, dict) else item)
    kept = [pair for pair in containers.values() if not isinstance(pair[0], tuple)]
    return attributes, kept


def _put_back(layer: Any, before: Saved) -> None:
    # By the dictionary: `__setattr__` of layers tracks what it is given.
    attributes, containers = before
    now = vars(layer)
    for name in [name for name in now if name not in attributes]:
        del now[name]
    for name, value in attributes.items():
        if now.get(name) is not value:
            now[name] = value
    for value, copy in containers:
        if not _same(value, copy):
            _refill(value, copy)


def _same(value: Any, copy: Any) -> bool:
    """Tell whether a container holds the same objects as its copy."""
    if len(value) != len(copy):
        return False
    if isinstance(value, dict):
        return all(k in value and value[k] is v for k, v in copy.items())
    if isinstance(value, set):
        return bool(value == copy)
    return all(a is b for a, b in zip(value, copy, strict=True))


def _refill(value: Any, copy: Any) -> None:
    # By the plain container's methods: those of tracked containers track.
    if isinstance(value, list):
        list.__setitem__(value, slice(None), copy)
        return
    kind: Any = dict if isinstance(value, dict) else set
    kind.clear(value)
    kind.update(value, copy)


def of_our_own(function: Any) -> Any:
    """Return what a `tf.function` does, without its cache.

    Its Python, to be traced into the graph around it, where layer rules see the layers
    inside; or, where it is compiled by XLA, casts its arguments, or is no plain function
    with a source, a copy of it.

    No public name gives the settings, nor silences the advice not to trace anew;
    `tests/test_package.py` fails clearly if these move.
    """
    plain = not function._jit_compile and function.input_signature is None
    if plain and not tf.executing_eagerly():
        converted = _converted(function.python_function, function._autograph)
        if converted is not None:
            return converted
    copy = function._clone(None)
    copy._omit_frequent_tracing_warning = True
    return copy


def from_its_cache(function: Any, args: Any, kwargs: Any) -> Any:
    """Return what a function's own trace makes of arguments, or `NotImplemented`.

    Asked for another number of rows than it was made for, a trace answers without a word;
    the function would be traced anew.
    """
    for trace in function._list_all_concrete_functions():
        if fits(trace.structured_input_signature, (args, kwargs)):
            try:
                return trace(*args, **kwargs)
            except (TypeError, ValueError, tf.errors.InvalidArgumentError):
                continue  # it was made for others
    return NotImplemented


def fits(specs: Any, given: Any) -> bool:
    """Tell whether what was traced for these specifications takes such arguments."""
    specs, given = keras.tree.flatten(specs), keras.tree.flatten(given)
    return len(specs) == len(given) and all(
        not isinstance(spec, tf.TensorSpec)
        or (tf.is_tensor(value) and spec.is_compatible_with(value))
        for spec, value in zip(specs, given, strict=True)
    )


def is_of_libraries(function: Any) -> bool:
    """Tell whether Keras, TensorFlow or NumPy wrote a function.

    By its name and by where its code is: `functools.wraps` lends a user's function the
    name of a library's, and a library's wrapper that of a user's.
    """
    inner = getattr(function, "__func__", function)
    module = getattr(function, "__module__", None) or ""
    written = getattr(inner, "__globals__", {}).get("__name__", module)
    libraries = ("keras.", "tensorflow.", "numpy.")
    return module.startswith(libraries) and written.startswith(libraries)


def _converted(function: Any, autograph: bool) -> Any:
    """Convert a Python function as `tf.function` would: `if` and `for` of tensors work."""
    if not autograph or is_of_libraries(function):
        return function
    try:
        converted = tf.autograph.to_graph(function)
    except Exception:  # of many kinds, none of them public: a copy does without
        return None
    own = getattr(function, "__self__", None)  # of a method, which comes back without it
    return converted if own is None else functools.partial(converted, own)

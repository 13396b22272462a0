"""What is traced, and kept: a feature map's verbs as functions, pooled by architecture.

A function is traced once for networks of one architecture: weights are its arguments.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_kare import _rows
from keras_kare.kernels.identity import identical
from keras_kare.kernels.recompute import Tiled
from keras_kare.kernels.structured.features import FeatureMap
from keras_kare.kernels.structured.held import Arrays, Held, in_arrays
from keras_kare.kernels.structured.plan import Plan
from keras_kare.kernels.structured.untouched import aside, fits, untouched

FEW = 1024
"""Rows up to which operations may run one by one."""

OFTEN = 8
"""Calls up to which they do."""

_OF_ROWS = {"gram": 1, "cross": 2, "diag": 1, "vjp": 1}
"""Verbs that need no more of rows than what is held of them, and of how many rows."""

_TRACING = threading.local()
"""Whether this thread is tracing a function that networks have in common."""

_MOST = 8
"""Architectures whose traces are kept for the next network of the same."""

_POOLS: OrderedDict[str, dict[Any, Any]] = OrderedDict()


def _pool(architecture: str) -> dict[Any, Any]:
    """Return what has been planned and traced for an architecture, whoever's weights."""
    found = _POOLS.setdefault(architecture, {})
    _POOLS.move_to_end(architecture)
    while len(_POOLS) > _MOST:
        _POOLS.popitem(last=False)
    return found


class Runtime:
    """The plans and traces of one process; never tracked, saved or copied."""

    def __init__(self) -> None:
        self.plans: dict[tuple[int, ...], Plan] = {}
        self.functions: dict[Any, Any] = {}
        self.pooled = False
        self.ready = False  # until the network has its variables
        # What `check` was told of the batches to come: how many rows they will have where
        # shapes do not say. It decides whether gradients go in tiles, and no value.
        self.expected_rows: int | None = None
        self._architecture: str | None = None
        self._variables: list[Any] = []

    def is_new(self, architecture: str, variables: list[Any]) -> bool:
        """Tell whether a network has changed; drop what was planned and traced before."""
        same = identical(variables, self._variables)
        if same and architecture == self._architecture:
            return False
        self._architecture, self._variables = architecture, list(variables)
        self.plans.clear()
        self.functions, self.pooled = {}, False
        return True

    def pool(self, common: str | None) -> None:
        """Use what was traced for other networks that have `common` in common, if known."""
        if common is not None and not tf.distribute.has_strategy():
            self.functions, self.pooled = _pool(f"{self._architecture} {common}"), True

    def __deepcopy__(self, memo: Any) -> Runtime:
        return Runtime()

    def __reduce__(self) -> Any:
        return (Runtime, ())


class Traces:
    """The verbs of a feature map as traced functions.

    Args:
        runtime: Keeps them.
        features: The feature map.
    """

    def __init__(self, runtime: Runtime, features: FeatureMap):
        self.features = features
        self._runtime = runtime
        self._plan = features.plan.origin or features.plan
        # What arrays that `held` has returned stand for: the newest come last.
        known: list[Held] = runtime.functions.setdefault(
            ("held", self._plan, features.inner), []
        )
        self._known = known
        # Not where plain Jacobians are: of these never two are held.
        self._parted = not features.plan.jacobian

    def call(self, verb: str, *arguments: Any) -> Any:
        """Apply a verb of the feature map to rows."""
        if verb == "held":
            return self.held(*arguments)
        return self._call(verb, getattr(self.features, verb), arguments)

    def held(self, x: Any) -> Arrays:
        """Return what kernel values and products need of rows, for `of_held`."""
        arrays, traced = in_arrays(self.features.held)
        found: Arrays = self._call("held", arrays, [x])
        self._known.extend(traced)  # none, where it had been traced
        return found

    def of_held(self, verb: str, *arguments: Any) -> Any:
        """Apply a verb of the feature map to what `held` returned."""
        return self._call(verb, self._of_arrays(verb), arguments)

    def product(self, verb: str, *arguments: Any) -> Any:
        """Do as `of_held`, but trace nothing while it is quick and seldom called."""
        key = ("calls", verb, self._plan, self.features.dtype)
        functions, eagerly = self._runtime.functions, tf.executing_eagerly()
        functions[key] = functions.get(key, 0) + eagerly
        if eagerly and functions[key] <= OFTEN and _rows.count(arguments) <= FEW:
            return self._of_arrays(verb)(*arguments)
        return self.of_held(verb, *arguments)

    def of_rows(self, verb: str, *arguments: Any) -> Any:
        """Apply a verb to what is held of rows, which is traced once for all verbs.

        Rows of two shapes are traced together, so that variables go the same road in both.
        """
        rows, others = arguments[: _OF_ROWS[verb]], arguments[_OF_ROWS[verb] :]
        shapes = {repr(keras.tree.map_structure(_any_rows, x)) for x in rows}
        if not self._parted or len(shapes) > 1:
            return self.call(verb, *arguments)
        held = [self.held(x) for x in rows]
        return self.product(f"{verb}_of_held", *held, *others)

    def gradient(self, verb: str, tiled: Tiled, *arguments: Any) -> list[tf.Tensor]:
        """Return the gradient of what was computed in tiles, for an upstream gradient."""
        *specs, upstream = _specs(verb, arguments)
        specs.append(tf.TensorSpec([None, None, *upstream.shape[2:]], upstream.dtype))
        function = self._function(verb, getattr(tiled, verb), tiled.tile, specs)
        found: list[tf.Tensor] = function(*arguments)
        return found

    def common(
        self, function: Callable[..., Any], key: str, fixed: bool, *arguments: Any
    ) -> Callable[..., Any]:
        """Return a function for all networks of an architecture; see `Kernel.shared`."""
        spec = _exactly if fixed else _any_rows
        specs = [keras.tree.map_structure(spec, argument) for argument in arguments]
        kinds = keras.tree.map_structure(lambda t: f"{t.shape.rank} {t.dtype}", arguments)
        place = ("shapes", key, self._plan, self.features.dtype, repr(kinds))
        known = self._runtime.functions.setdefault(place, [])
        for others in reversed(known):
            if fits(others, arguments):
                return self._function("common", function, key, others)
        if known:  # axes that were of two lengths are of any
            specs = keras.tree.map_structure(_any_of, known[-1], specs)
        known.append(specs)
        return self._function("common", function, key, specs)

    def inline(self, verb: str, *arguments: Any) -> Any:
        """Apply a verb in the graph that is being traced; weights' gradients flow."""
        if not self._runtime.pooled or getattr(_TRACING, "pooled", False):
            return getattr(self.features, verb)(*arguments)
        call = self.of_rows if verb in _OF_ROWS else self.call
        found = call(verb, *arguments)
        if verb in ("gram", "cross", "diag"):  # rows may be known here
            rows = [keras.tree.flatten(x)[0].shape[:1] for x in arguments]
            rows *= 2 if verb == "gram" else 1
            known = functools.reduce(tf.TensorShape.concatenate, rows)
            found.set_shape(known.concatenate(found.shape[len(rows) :]))
        return found

    def _of_arrays(self, verb: str) -> Callable[..., Any]:
        """Make a verb of held rows a function of their arrays."""
        count = 2 if verb == "cross_of_held" else 1
        method = getattr(self.features, verb)

        def of_arrays(*arguments: Any) -> Any:
            held = [self._like(a).of(a) for a in arguments[:count]]
            return method(*held, *arguments[count:])

        return of_arrays

    def _like(self, arrays: Arrays) -> Held:
        """Return what arrays of such shapes stand for."""
        found = next((held for held in reversed(self._known) if held.fits(arrays)), None)
        if found is None:
            shapes = [tuple(t.shape) for t in keras.tree.flatten(arrays)]
            raise ValueError(
                "These are no parts of rows of this kernel: take what `held` of the same "
                f"kernel returns. Received: arrays of shapes {shapes}"
            )
        return found

    def _call(self, verb: str, method: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        return self._function(verb, method, None, _specs(verb, arguments))(*arguments)

    def _function(
        self, verb: str, method: Callable[..., Any], key: Any, specs: list[Any]
    ) -> Callable[..., Any]:
        """Return a method as a traced function, at this network's weights."""
        # Nothing else changes what a function of this plan computes.
        dtype = self.features.inner if verb == "held" else self.features.dtype
        key = (verb, key, self._plan, dtype, repr(specs))
        functions = self._runtime.functions
        if key not in functions:
            functions[key] = self._traced(method, specs)
        return functools.partial(functions[key], self.features.network)

    def _traced(self, method: Any, specs: list[Any]) -> Callable[..., Any]:
        """Trace a function of a network of this architecture and of arguments."""
        network = self.features.network
        if not self._runtime.pooled:
            traced = tf.function(method, autograph=False)
            with untouched(network):
                function = traced.get_concrete_function(*specs)
            return lambda _, *arguments: function(*arguments)

        # Variables that a function is given are its inputs wherever it reads them.
        def of_weights(weights: list[tf.Variable], *arguments: Any) -> Any:
            return method(*arguments)

        def trace() -> Any:  # in a thread of its own, whose `_TRACING` ends with it
            _TRACING.pooled = True
            given = [v.value for v in network.variables]
            traced = tf.function(of_weights, autograph=False)
            with untouched(network):
                return traced.get_concrete_function(given, *specs)

        common = aside(trace)

        def call(other: keras.Model, *arguments: Any) -> Any:
            return common([v.value for v in other.variables], *arguments)

        return call


def _specs(verb: str, arguments: Sequence[Any]) -> list[Any]:
    """Return what a verb is traced for: any number of rows, and so many directions."""
    # The weights of `jvp` have directions on their first axis, not rows.
    exact = verb in ("jvp", "push")
    return [
        keras.tree.map_structure(_exactly if exact and i else _any_rows, argument)
        for i, argument in enumerate(arguments)
    ]


def _exactly(t: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec(t.shape, t.dtype)


def _any_rows(t: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec([None, *t.shape[1:]], t.dtype)


def _any_of(one: tf.TensorSpec, other: tf.TensorSpec) -> tf.TensorSpec:
    """Return a specification that arrays of both shapes fit."""
    shape = one.shape.most_specific_compatible_shape(other.shape)
    return tf.TensorSpec(shape, one.dtype)

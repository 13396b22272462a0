"""Running a feature map eagerly: at once, or in tiles, wherever the values go."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _rows
from keras_kare.kernels import disk, memory, tiles
from keras_kare.kernels.identity import identical
from keras_kare.kernels.memory import in_words
from keras_kare.kernels.operator import CHUNK
from keras_kare.kernels.recompute import Tiled, attach
from keras_kare.kernels.sizes import Sizes
from keras_kare.kernels.structured.features import FeatureMap
from keras_kare.kernels.structured.plan import Plan
from keras_kare.kernels.structured.untouched import aside, fits, untouched


class Runtime:
    """What one process has planned and traced; never tracked, saved or copied."""

    def __init__(self) -> None:
        self.plans: dict[tuple[int, ...], Plan] = {}
        self.functions: dict[Any, Any] = {}
        self.shares = False
        self.rows: int | None = None
        self._architecture: str | None = None
        self._variables: list[Any] = []

    def is_new(self, architecture: str, variables: list[Any]) -> bool:
        """Whether a network has changed; what was planned and traced before is dropped."""
        same = identical(variables, self._variables)
        if same and architecture == self._architecture:
            return False
        self._architecture, self._variables = architecture, list(variables)
        self.plans.clear()
        self.functions, self.shares = {}, False
        return True

    def share(self, common: str | None) -> None:
        """Use what was traced for other networks that have `common` in common, if known."""
        if common is not None and not tf.distribute.has_strategy():
            self.functions, self.shares = _common(f"{self._architecture} {common}"), True

    def __deepcopy__(self, memo: Any) -> Runtime:
        return Runtime()

    def __reduce__(self) -> Any:
        return (Runtime, ())


FEW = 1024
"""Rows up to which operations may run one by one."""

OFTEN = 8
"""Calls up to which they do."""

_OF_ROWS = {"gram": 1, "cross": 2, "diag": 1, "vjp": 1}
"""Verbs that need no more of rows than what is held of them, and of how many rows."""

_TRACING = threading.local()
"""Whether this thread is tracing a function that networks share."""

_MOST = 8
"""Architectures whose traces are kept for the next network of the same."""

_COMMON: OrderedDict[str, dict[Any, Any]] = OrderedDict()


def _common(architecture: str) -> dict[Any, Any]:
    """What has been planned and traced for an architecture, whoever's weights."""
    found = _COMMON.setdefault(architecture, {})
    _COMMON.move_to_end(architecture)
    while len(_COMMON) > _MOST:
        _COMMON.popitem(last=False)
    return found


class Work:
    """The verbs of a kernel on concrete rows.

    Args:
        runtime: Keeps traced functions.
        features: The feature map.
        limit: Bytes that may be held beside inputs, weights and result.
    """

    def __init__(self, runtime: Runtime, features: FeatureMap, limit: int):
        self.runtime = runtime
        self.limit = limit
        self.sizes = Sizes.of(features)
        self._network = features.network
        self._plan = features.plan.origin or features.plan
        self.features = features
        # Of all feature maps that are equal, functions may be traced with different ones.
        key = ("layouts", self._plan, features.inner)
        features.layouts = runtime.functions.setdefault(key, features.layouts)
        # Not where plain Jacobians are: of these never two are held.
        self._parted = not features.plan.jacobian

    def gram(self, x: Any, out: Any, fingerprint: Callable[[], str]) -> Any:
        """Into a tensor, an array or a file; see `NTK.gram`."""
        rows = _rows.count(x)
        if out is None and self.sizes.needs_no_tiles(rows, self.limit):
            return self._of_rows("gram", x)
        grid = self._grid(rows, rows, symmetric=True)
        values = self._fill(grid, (x, x), out, fingerprint)
        if out is not None:
            return values
        return self._attached(values, grid.tile, "gram_gradient", x)

    def cross(self, x1: Any, x2: Any, out: Any, fingerprint: Callable[[], str]) -> Any:
        """Into a tensor, an array or a file; see `NTK.cross`."""
        rows, columns = _rows.count(x1), _rows.count(x2)
        most = max(rows, columns)
        if out is None and self.sizes.needs_no_tiles(most, self.limit):
            return self._of_rows("cross", x1, x2)
        grid = self._grid(rows, columns, symmetric=False)
        values = self._fill(grid, (x1, x2), out, fingerprint)
        if out is not None:
            return values
        return self._attached(values, grid.tile, "cross_gradient", x1, x2)

    def diag(self, x: Any) -> tf.Tensor:
        """A slice of rows after the other."""
        parts = [self._of_rows("diag", part) for part in self._slices(x)]
        return tf.concat(parts, axis=0)

    def vjp(self, x: Any, v: tf.Tensor) -> list[tf.Tensor]:
        """Summed over slices of rows."""
        slices, begin = self._slices(x), 0
        parts = []
        for part in slices:
            end = begin + _rows.count(part)
            parts.append((part, v[begin:end]))
            begin = end
        return _rows.total(self._of_rows("vjp", *part) for part in parts)

    def jvp(self, x: Any, w: list[tf.Tensor]) -> tf.Tensor:
        """A slice of rows after the other."""
        parts = [self._call("jvp", part, w) for part in self._slices(x)]
        return tf.concat(parts, axis=0)

    def _of_rows(self, verb: str, *arguments: Any) -> Any:
        """A verb of what is held of rows, which is traced once for all verbs and types.

        Rows of two shapes are traced together, so that variables go the same road in both.
        """
        rows, others = arguments[: _OF_ROWS[verb]], arguments[_OF_ROWS[verb] :]
        shapes = {repr(keras.tree.map_structure(_any_rows, x)) for x in rows}
        if not self._parted or len(shapes) > 1:
            return self._call(verb, *arguments)
        held = [self._call("held", x) for x in rows]
        return self._product(f"{verb}_of_held", *held, *others)

    def _product(self, verb: str, *arguments: Any) -> Any:
        """A verb of what is held: a few operations, which are traced if called often."""
        key = ("calls", verb, self._plan, self.features.dtype)
        functions, eagerly = self.runtime.functions, tf.executing_eagerly()
        functions[key] = functions.get(key, 0) + eagerly
        if eagerly and functions[key] <= OFTEN and _rows.count(arguments) <= FEW:
            return getattr(self.features, verb)(*arguments)
        return self._call(verb, *arguments)

    def over_slices(self, verb: str, x: Any) -> Any:
        """A verb whose results have rows on their first axes, a slice after the other."""
        parts = [self._call(verb, part) for part in self._slices(x)]
        if len(parts) == 1:
            return parts[0]
        return keras.tree.map_structure(lambda *t: tf.concat(t, axis=0), *parts)

    def pull(self, held: Any, v: tf.Tensor) -> list[tf.Tensor]:
        """`Jᵀ v` of what `held` returned."""
        return self._call("pull", held, v)

    def push(self, held: Any, w: list[tf.Tensor]) -> tf.Tensor:
        """`J w` of what `held` returned."""
        return self._call("push", held, w)

    def chunk(self, rows: int, vectors: int) -> tuple[int, bool]:
        """Rows that go at a time in products with vectors; whether all are held.

        What a row's passes hold is what a vector's products hold, at most, twice as
        wide (in float64).
        """
        each = self.sizes.working + self.sizes.held + 2.0 * self.sizes.working * vectors
        step = int(max(16.0, min(float(CHUNK), self.limit / 4.0 / max(each, 1.0))))
        return min(step, rows), self.sizes.held * rows <= self.limit / 4.0

    def _slices(self, x: Any) -> list[Any]:
        rows = _rows.count(x)
        most = rows if self.sizes.working * rows <= self.limit else 0
        step = most or self.sizes.tile(rows, self.limit)
        self.sizes.check_tile(step, self.limit)
        if step >= rows:
            return [x]
        return list(_rows.slices(x, step))

    def _grid(self, rows: int, columns: int, symmetric: bool) -> tiles.Grid:
        tile = self.sizes.tile(max(rows, columns), self.limit)
        self.sizes.check_tile(tile, self.limit)
        panel = self.sizes.panel(rows, tile, self.limit)
        return tiles.Grid(rows, columns, tile, panel, symmetric)

    def _fill(
        self,
        grid: tiles.Grid,
        sides: tuple[Any, Any],
        out: Any,
        fingerprint: Callable[[], str],
    ) -> Any:
        shape: tuple[int, ...] = (grid.rows, grid.columns)
        features = self.features
        if features.outputs == "full":
            shape += (features.plan.outputs,) * 2
        dtype = np.dtype(features.dtype.as_numpy_dtype)
        engine = _Engine(self, sides)
        if out is None:
            _check_result(shape, dtype)
            target = tiles.TensorTarget(shape, dtype, grid.symmetric)
            tiles.compute(engine, grid, target)
            return target.result()
        if isinstance(out, np.ndarray):
            _check_array(out, shape)
            disk.allocate_mapped(out)
            tiles.compute(engine, grid, tiles.ArrayTarget(out, grid.symmetric))
            return out
        path = _check_path(out)
        contents = disk.contents_of(fingerprint(), features.outputs, *sides)
        file = disk.DiskTarget(path, shape, dtype, contents, grid.symmetric, grid.tile)
        try:
            tiles.compute(engine, disk.finish_grid(grid, file), file)
        except KeyboardInterrupt as stopped:
            stopped.add_note(
                f"{str(path)!r} holds what was done. The same call goes on from there."
            )
            raise
        return file.array

    def _attached(self, values: tf.Tensor, tile: int, verb: str, *rows: Any) -> tf.Tensor:
        """Tiles as a tensor whose gradient recomputes them."""
        features = self.features
        most = max(_rows.count(x) for x in rows)
        tile = max(1, min(tile, self.sizes.gradient_tile(most, self.limit)))

        def backward(upstream: tf.Tensor) -> list[tf.Tensor]:
            tiled = Tiled(FeatureMap(*_arguments(features)), tile)
            return self._call(verb, *rows, upstream, of=tiled, key=tile)

        return attach(values, self._network.trainable_variables, backward)

    def _call(self, verb: str, *arguments: Any, of: Any = None, key: Any = None) -> Any:
        """A verb of the feature map (or of another object) as a traced function."""
        # The weights of `jvp` have directions on their first axis, not rows.
        exact = verb in ("jvp", "push")
        specs = [
            keras.tree.map_structure(_exactly if exact and i else _any_rows, argument)
            for i, argument in enumerate(arguments)
        ]
        if verb.endswith("_gradient"):  # rows on two axes
            shape = arguments[-1].shape
            specs[-1] = tf.TensorSpec([None, None, *shape[2:]], arguments[-1].dtype)
        method = getattr(self.features if of is None else of, verb)
        return self._function(verb, method, key, specs)(*arguments)

    def _function(
        self, verb: str, method: Callable[..., Any], key: Any, specs: list[Any]
    ) -> Callable[..., Any]:
        """A method as a traced function, at this network's weights."""
        # Nothing else changes what a function of this plan computes.
        dtype = self.features.inner if verb == "held" else self.features.dtype
        key = (verb, key, self._plan, dtype, repr(specs))
        functions = self.runtime.functions
        if key not in functions:
            functions[key] = self._traced(method, specs)
        return functools.partial(functions[key], self._network)

    def shared(
        self, function: Callable[..., Any], key: str, fixed: bool, *arguments: Any
    ) -> Callable[..., Any] | None:
        """See `Kernel.shared`."""
        rows = _rows.count(arguments)
        if not self.runtime.shares or self.sizes.for_gradient(rows) > self.limit:
            return None
        spec = _exactly if fixed else _any_rows
        specs = [keras.tree.map_structure(spec, argument) for argument in arguments]
        kinds = keras.tree.map_structure(lambda t: f"{t.shape.rank} {t.dtype}", arguments)
        place = ("shapes", key, self._plan, self.features.dtype, repr(kinds))
        known = self.runtime.functions.setdefault(place, [])
        for others in reversed(known):
            if fits(others, arguments):
                return self._function("shared", function, key, others)
        if known:  # axes that were of two lengths are of any
            specs = keras.tree.map_structure(_any_of, known[-1], specs)
        known.append(specs)
        return self._function("shared", function, key, specs)

    def inline(self, verb: str, *arguments: Any) -> Any:
        """A verb in the graph that is being traced, whose weights' gradients flow."""
        if not self.runtime.shares or getattr(_TRACING, "shared", False):
            return getattr(self.features, verb)(*arguments)
        call = self._of_rows if verb in _OF_ROWS else self._call
        found = call(verb, *arguments)
        if verb in ("gram", "cross", "diag"):  # rows may be known here
            rows = [keras.tree.flatten(x)[0].shape[:1] for x in arguments]
            rows *= 2 if verb == "gram" else 1
            known = functools.reduce(tf.TensorShape.concatenate, rows)
            found.set_shape(known.concatenate(found.shape[len(rows) :]))
        return found

    def _traced(self, method: Any, specs: list[Any]) -> Callable[..., Any]:
        """A function of a network, of this architecture, and of the method's arguments."""
        network = self.features.network
        if not self.runtime.shares:
            traced = tf.function(method, autograph=False)
            with untouched(network):
                function = traced.get_concrete_function(*specs)
            return lambda _, *arguments: function(*arguments)

        def of_weights(weights: list[tf.Variable], *arguments: Any) -> Any:
            # Variables that a function is given are its inputs wherever it reads them.
            _TRACING.shared = True
            with untouched(network):
                return method(*arguments)

        traced = tf.function(of_weights, autograph=False)
        given = [v.value for v in network.variables]
        # In a thread of its own, whose `_TRACING` ends with it.
        shared = aside(lambda: traced.get_concrete_function(given, *specs))

        def call(other: keras.Model, *arguments: Any) -> Any:
            return shared([v.value for v in other.variables], *arguments)

        return call


class _Engine:
    """Features and their products as traced functions."""

    def __init__(self, work: Work, sides: tuple[Any, Any]):
        self._work = work
        self._sides = sides

    def features(self, side: int, rows: slice) -> Any:
        return self._work._call("held", _rows.take(self._sides[side], rows))

    def gram(self, features: Any) -> tf.Tensor:
        return self._work._call("gram_of_held", features)

    def cross(self, features: Any, others: Any) -> tf.Tensor:
        return self._work._call("cross_of_held", features, others)


def check_no_out(out: Any) -> None:
    """Refuse a place for the result where there is no result yet."""
    if out is not None:
        raise ValueError(
            "`out` is for calls outside of a `tf.function`. Received: "
            f"out={out!r} while a function is being traced"
        )


def _check_result(shape: tuple[int, ...], dtype: np.dtype) -> None:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    free = memory.available()
    if size > free:
        raise MemoryError(
            f"The kernel values take {in_words(size)}, and {in_words(free)} are free. "
            'Write them to a file with `out="FILE.npy"`, or take fewer rows.'
        )


def _check_array(out: np.ndarray, shape: tuple[int, ...]) -> None:
    if out.shape != shape or out.dtype.kind != "f" or not out.flags.writeable:
        raise ValueError(
            f"`out` must be a writable floating-point array of shape {shape}. Received: "
            f"out of shape {out.shape} and type {out.dtype}"
            f"{'' if out.flags.writeable else ', read-only'}"
        )


def _check_path(out: Any) -> Path:
    if not isinstance(out, str | Path):
        raise ValueError(
            "`out` must be a NumPy array to fill, or the name of a `.npy` file. "
            f"Received: out of type {type(out).__name__}"
        )
    path = Path(out)
    if path.suffix != ".npy" or not path.resolve().parent.is_dir():
        raise ValueError(
            "`out` must name a `.npy` file in a folder that exists. "
            f"Received: out={str(out)!r}"
        )
    return path


def _arguments(features: FeatureMap) -> tuple[Any, ...]:
    return features.network, features.plan, features.outputs, features.dtype


def _exactly(t: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec(t.shape, t.dtype)


def _any_rows(t: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec([None, *t.shape[1:]], t.dtype)


def _any_of(one: tf.TensorSpec, other: tf.TensorSpec) -> tf.TensorSpec:
    """Of both shapes."""
    shape = one.shape.most_specific_compatible_shape(other.shape)
    return tf.TensorSpec(shape, one.dtype)

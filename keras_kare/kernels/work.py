"""The verbs of a kernel on concrete rows: at once, or in tiles and slices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_kare import _rows
from keras_kare.kernels import disk, tiles
from keras_kare.kernels.destinations import fill
from keras_kare.kernels.operator import CHUNK
from keras_kare.kernels.recompute import Tiled, attach
from keras_kare.kernels.sizes import Sizes
from keras_kare.kernels.structured.features import FeatureMap
from keras_kare.kernels.traces import Runtime, Traces


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
        self.features = features
        self.traces = Traces(runtime, features)

    def gram(self, x: Any, out: Any, fingerprint: Callable[[], str]) -> Any:
        """Compute a Gram matrix into a tensor, an array or a file; see `NTK.gram`."""
        rows = _rows.count(x)
        if out is None and self.sizes.needs_no_tiles(rows, self.limit):
            return self.traces.of_rows("gram", x)
        grid = self._grid(rows, rows, symmetric=True)
        values = self._fill(grid, (x, x), out, fingerprint)
        if out is not None:
            return values
        return self._attached(values, grid.tile, "gram_gradient", x)

    def cross(self, x1: Any, x2: Any, out: Any, fingerprint: Callable[[], str]) -> Any:
        """Compute a matrix into a tensor, an array or a file; see `NTK.cross`."""
        rows, columns = _rows.count(x1), _rows.count(x2)
        most = max(rows, columns)
        if out is None and self.sizes.needs_no_tiles(most, self.limit):
            return self.traces.of_rows("cross", x1, x2)
        grid = self._grid(rows, columns, symmetric=False)
        values = self._fill(grid, (x1, x2), out, fingerprint)
        if out is not None:
            return values
        return self._attached(values, grid.tile, "cross_gradient", x1, x2)

    def diag(self, x: Any) -> tf.Tensor:
        """Compute the diagonal, a slice of rows after the other."""
        parts = [self.traces.of_rows("diag", part) for part in self._slices(x)]
        return tf.concat(parts, axis=0)

    def vjp(self, x: Any, v: tf.Tensor) -> list[tf.Tensor]:
        """Return `Jᵀ v`, summed over slices of rows."""
        slices, begin = self._slices(x), 0
        parts = []
        for part in slices:
            end = begin + _rows.count(part)
            parts.append((part, v[begin:end]))
            begin = end
        return _rows.total(self.traces.of_rows("vjp", *part) for part in parts)

    def jvp(self, x: Any, w: list[tf.Tensor]) -> tf.Tensor:
        """Return `J w`, a slice of rows after the other."""
        parts = [self.traces.call("jvp", part, w) for part in self._slices(x)]
        return tf.concat(parts, axis=0)

    def over_slices(self, verb: str, x: Any) -> Any:
        """Apply a verb whose results have rows on their first axes, slice by slice."""
        parts = [self.traces.call(verb, part) for part in self._slices(x)]
        return parts[0] if len(parts) == 1 else _rows.joined(parts)

    def common(
        self, function: Callable[..., Any], key: str, fixed: bool, *arguments: Any
    ) -> Callable[..., Any] | None:
        """Return a function for all networks of an architecture; see `Kernel.shared`."""
        rows = _rows.count(arguments)
        if not self.runtime.pooled or self.sizes.for_gradient(rows) > self.limit:
            return None
        return self.traces.common(function, key, fixed, *arguments)

    def inline(self, verb: str, rows: tuple[Any, ...], extra: Any) -> Any:
        """Apply a verb in the graph that is being traced, in tiles where need be."""
        if verb not in ("gram", "cross"):
            return self.traces.inline(verb, *rows, *extra)
        counts = [_rows.known_count(x) or self.runtime.expected_rows for x in rows]
        most = max((n for n in counts if n is not None), default=0)
        if self.sizes.for_gradient(most) <= self.limit:
            return self.traces.inline(verb, *rows)
        tile = self.sizes.gradient_tile(most, self.limit)
        self.sizes.check_tile(tile, self.limit)
        return getattr(Tiled(self.features, tile), verb)(*rows)

    def chunk(self, rows: int, vectors: int) -> tuple[int, bool]:
        """Return how many rows go at a time in products with vectors; whether all are held.

        What a row's passes hold is what a vector's products hold, at most, twice as
        wide (in float64).
        """
        each = self.sizes.working + self.sizes.features + 2.0 * self.sizes.working * vectors
        step = int(max(16.0, min(float(CHUNK), self.limit / 4.0 / max(each, 1.0))))
        return min(step, rows), self.sizes.features * rows <= self.limit / 4.0

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
        features = self.features
        shape: tuple[int, ...] = (grid.rows, grid.columns)
        if features.outputs == "full":
            shape += (features.plan.outputs,) * 2

        def contents() -> str:
            return disk.contents_of(fingerprint(), features.outputs, *sides)

        engine = _Engine(self.traces, sides)
        dtype = np.dtype(features.dtype.as_numpy_dtype)
        return fill(out, shape, dtype, engine, grid, contents)

    def _attached(self, values: tf.Tensor, tile: int, verb: str, *rows: Any) -> tf.Tensor:
        """Make tiles a tensor whose gradient recomputes them."""
        most = max(_rows.count(x) for x in rows)
        tile = max(1, min(tile, self.sizes.gradient_tile(most, self.limit)))
        tiled = Tiled(self.features, tile)

        def backward(upstream: tf.Tensor) -> list[tf.Tensor]:
            return self.traces.gradient(verb, tiled, *rows, upstream)

        return attach(values, self.features.network.trainable_variables, backward)


class _Engine:
    """Features and their products as traced functions."""

    def __init__(self, traces: Traces, sides: tuple[Any, Any]):
        self._traces = traces
        self._sides = sides

    def features(self, side: int, rows: slice) -> Any:
        return self._traces.held(_rows.take(self._sides[side], rows))

    def gram(self, features: Any) -> tf.Tensor:
        return self._traces.of_held("gram_of_held", features)

    def cross(self, features: Any, others: Any) -> tf.Tensor:
        return self._traces.of_held("cross_of_held", features, others)

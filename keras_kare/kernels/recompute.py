"""Kernel values in tiles inside a graph, with gradients that recompute features.

Where the features' passes over all rows would not fit, the graph loops over tiles:
forward, it keeps each tile's features only; backward, it computes them once more, a
tile at a time, and never holds what the passes of more than one tile need.

For an upstream `G` of `K = J J'ᵀ`, the gradient by the features of row `i` is
`sum_j G_ij J'_j`, in whatever form the factors have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_kare.kernels.structured.features import FeatureMap
from keras_kare.kernels.structured.held import Arrays, Held


class _Store(NamedTuple):
    """The features of all rows, a tile at a time.

    Attributes:
        like: Those of any tile.
        arrays: An array a part, with an element a tile.
    """

    like: Held
    arrays: tuple[tf.TensorArray, ...]

    def load(self, i: tf.Tensor) -> Held:
        """Return the features of a tile."""
        like = self.like.arrays
        flat = [
            tf.ensure_shape(array.read(i), [None, *t.shape[1:]])
            for array, t in zip(self.arrays, keras.tree.flatten(like), strict=True)
        ]
        return self.like.of(keras.tree.pack_sequence_as(like, flat))


class Tiled:
    """Kernel values of a feature map in tiles of `tile` rows.

    Args:
        features: The feature map.
        tile: Most rows whose passes are held at once.
    """

    def __init__(self, features: FeatureMap, tile: int):
        self.features = features
        self.tile = tile

    def gram(self, x: Any) -> tf.Tensor:
        """Return what `FeatureMap.gram` does, in tiles."""
        values = self._blocks(x, x, symmetric=True)
        return self._attach(values, lambda upstream: self.gram_gradient(x, upstream))

    def cross(self, x1: Any, x2: Any) -> tf.Tensor:
        """Return what `FeatureMap.cross` does, in tiles."""
        values = self._blocks(x1, x2, symmetric=False)
        return self._attach(values, lambda upstream: self.cross_gradient(x1, x2, upstream))

    def gram_gradient(self, x: Any, upstream: tf.Tensor) -> list[tf.Tensor]:
        """Return the gradient of `sum(upstream * gram(x))`, an array a variable."""
        return self._rows_gradient(x, x, upstream + _mirrored(upstream))

    def cross_gradient(self, x1: Any, x2: Any, upstream: tf.Tensor) -> list[tf.Tensor]:
        """Return the gradient of `sum(upstream * cross(x1, x2))`."""
        first = self._rows_gradient(x1, x2, upstream)
        second = self._rows_gradient(x2, x1, _mirrored(upstream))
        return [a + b for a, b in zip(first, second, strict=True)]

    def _attach(
        self, values: tf.Tensor, backward: Callable[[tf.Tensor], list[tf.Tensor]]
    ) -> tf.Tensor:
        return attach(values, self.features.network.trainable_variables, backward)

    def _blocks(self, x1: Any, x2: Any, symmetric: bool) -> tf.Tensor:
        """Compute all values, a row of tiles after the other."""
        n1, n2 = _count(x1), _count(x2)
        down, across = self._tiles(n1), self._tiles(n2)
        store2 = self._store(x2, across)
        store1 = store2 if symmetric else self._store(x1, down)

        def row(i: tf.Tensor, rows: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            left = store1.load(i)

            def column(
                j: tf.Tensor, blocks: tf.TensorArray
            ) -> tuple[tf.Tensor, tf.TensorArray]:
                block = self.features.cross_of_held(left, store2.load(j))
                if symmetric:  # half of the diagonal, since both triangles are added
                    block = tf.where(tf.equal(i, j), 0.5 * block, block)
                return j + 1, blocks.write(j, _mirrored(block))

            last = i + 1 if symmetric else across
            found = tf.TensorArray(
                self.features.dtype, size=last, infer_shape=False, element_shape=None
            )
            _, found = tf.while_loop(
                lambda j, _: j < last, column, (0, found), parallel_iterations=1
            )
            # Side by side: the columns are the first axis of what is concatenated.
            values = _mirrored(_reshaped(found.concat(), self.features))
            if symmetric:
                missing = n2 - tf.shape(values)[1]
                values = tf.pad(values, _only_columns(values, missing))
            return i + 1, rows.write(i, values)

        rows = tf.TensorArray(
            self.features.dtype, size=down, infer_shape=False, element_shape=None
        )
        _, rows = tf.while_loop(
            lambda i, _: i < down, row, (0, rows), parallel_iterations=1
        )
        values = _reshaped(rows.concat(), self.features)
        return values + _mirrored(values) if symmetric else values

    def _rows_gradient(self, x1: Any, x2: Any, g: tf.Tensor) -> list[tf.Tensor]:
        """Return the gradient of `sum_ij g_ij J(x1_i) J(x2_j)ᵀ` by the rows of `x1`."""
        n1, n2 = _count(x1), _count(x2)
        variables = self.features.network.trainable_variables
        down, across = self._tiles(n1), self._tiles(n2)
        store = self._store(x2, across)

        def row(i: tf.Tensor, *total: tf.Tensor) -> tuple[tf.Tensor, ...]:
            mine = self._rows(x1, i)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([v.value for v in variables])
                held = self.features.held(mine)
            gradients = tape.gradient(
                _floating(held.arrays),
                [v.value for v in variables],
                output_gradients=self._held_gradient(held, store, across, g, i, n1, n2),
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            added = zip(total, gradients, strict=True)
            return i + 1, *(t + tf.ensure_shape(d, t.shape) for t, d in added)

        start = [tf.zeros(v.shape, v.dtype) for v in variables]
        done = tf.while_loop(
            lambda i, *_: i < down, row, (0, *start), parallel_iterations=1
        )
        return list(done[1:])

    def _held_gradient(
        self,
        held: Held,
        store: _Store,
        across: tf.Tensor,
        g: tf.Tensor,
        i: tf.Tensor,
        n1: tf.Tensor,
        n2: tf.Tensor,
    ) -> list[tf.Tensor]:
        """Return `sum_j g_ij ∂K_ij/∂held_i`, one array a floating array of what is held."""
        own = [[tf.stop_gradient(t) for t in group] for group in held.arrays]
        begin, end = i * self.tile, tf.minimum(n1, (i + 1) * self.tile)

        def column(j: tf.Tensor, *total: tf.Tensor) -> tuple[tf.Tensor, ...]:
            other = store.load(j)
            left, right = j * self.tile, tf.minimum(n2, (j + 1) * self.tile)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(_floating(own))
                block = self.features.cross_of_held(held.of(own), other)
            gradients = tape.gradient(
                block,
                _floating(own),
                output_gradients=tf.cast(g[begin:end, left:right], block.dtype),
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            return j + 1, *(t + d for t, d in zip(total, gradients, strict=True))

        start = [tf.zeros_like(t) for t in _floating(own)]
        done = tf.while_loop(
            lambda j, *_: j < across,
            column,
            (0, *start),
            shape_invariants=(tf.TensorShape([]), *(t.shape for t in start)),
            parallel_iterations=1,
        )
        return list(done[1:])

    def _store(self, x: Any, count: tf.Tensor) -> _Store:
        """Compute the features of all rows, a tile after the other."""
        like = self.features.traced_held(x)
        arrays = [
            tf.TensorArray(t.dtype, size=count, infer_shape=False, clear_after_read=False)
            for t in keras.tree.flatten(like.arrays)
        ]

        def tile(i: tf.Tensor, *arrays: tf.TensorArray) -> tuple[Any, ...]:
            flat = keras.tree.flatten(self.features.held(self._rows(x, i)).arrays)
            return i + 1, *(a.write(i, t) for a, t in zip(arrays, flat, strict=True))

        done = tf.while_loop(
            lambda i, *_: i < count, tile, (0, *arrays), parallel_iterations=1
        )
        return _Store(like, done[1:])

    def _tiles(self, n: tf.Tensor) -> tf.Tensor:
        return (n + self.tile - 1) // self.tile

    def _rows(self, x: Any, i: tf.Tensor) -> Any:
        return keras.tree.map_structure(
            lambda t: t[i * self.tile : tf.minimum(tf.shape(t)[0], (i + 1) * self.tile)], x
        )


def attach(
    values: tf.Tensor,
    variables: list[keras.Variable],
    backward: Callable[[tf.Tensor], list[tf.Tensor]],
) -> tf.Tensor:
    """Give `values` a gradient by the variables: what `backward` says."""

    @tf.custom_gradient
    def attached(values: tf.Tensor, *weights: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradient(upstream: tf.Tensor) -> tuple[Any, ...]:
            parts = zip(backward(upstream), weights, strict=True)
            return None, *(tf.cast(g, w.dtype) for g, w in parts)

        return tf.identity(values), gradient

    weights = [tf.convert_to_tensor(v.value) for v in variables]
    return attached(tf.stop_gradient(values), *weights)


def _floating(arrays: Arrays) -> list[tf.Tensor]:
    return [t for group in arrays for t in group if t.dtype.is_floating]


def _count(x: Any) -> tf.Tensor:
    return tf.shape(keras.tree.flatten(x)[0])[0]


def _mirrored(values: tf.Tensor) -> tf.Tensor:
    return tf.transpose(values, (1, 0, 3, 2) if values.shape.rank == 4 else (1, 0))


def _reshaped(values: tf.Tensor, features: FeatureMap) -> tf.Tensor:
    """Give back the rank that a tensor array forgets."""
    if features.outputs != "full":
        return tf.ensure_shape(values, (None, None))
    c = features.plan.outputs
    return tf.ensure_shape(values, (None, None, c, c))


def _only_columns(values: tf.Tensor, missing: tf.Tensor) -> Any:
    rest = [(0, 0)] * (values.shape.rank - 2)
    return [(0, 0), (0, missing), *rest]

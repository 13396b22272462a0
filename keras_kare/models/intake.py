"""What users pass to a model's methods: arrays as it takes them, and datasets that fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _rows
from keras_kare._arrays import plain, plain_targets
from keras_kare._sentences import sentence
from keras_kare._validation import check_rows
from keras_kare.kernels import Kernel
from keras_kare.models.batches import is_dataset


def taken(kernel: Kernel, x: Any, y: Any = None, name: str = "") -> tuple[Any, Any]:
    """Return inputs and targets as arrays; a dataset as it is, where it fits.

    Args:
        kernel: The kernel.
        x: As passed to `fit`, `fit_head` or `evaluate`.
        y: As passed.
        name: Prefix of argument names in errors: "" or "validation ".

    Raises:
        ValueError: For what is no array, and datasets of single rows.
    """
    if is_dataset(x):
        check_batches(kernel, f"{name}x", x)
        return x, y
    if x is None or is_iterator(x):  # for which others have an error
        return x, y
    x = plain(f"{name}x", x, _network(kernel))
    kernel.check_codes(f"{name}x", x)
    counts = {len(part) for part in keras.tree.flatten(x) if np.ndim(part)}
    rows = counts.pop() if len(counts) == 1 else None
    return x, None if y is None else plain_targets(f"{name}y", y, rows)


def validation_taken(kernel: Kernel, data: Any) -> Any:
    """Return `validation_data` with arrays as `taken` returns them."""
    if is_dataset(data):
        check_batches(kernel, "validation x", data)
    if not isinstance(data, list | tuple) or len(data) not in (2, 3):
        return data
    return (*taken(kernel, data[0], data[1], "validation "), *data[2:])


def is_iterator(x: Any) -> bool:
    """Tell whether `x` yields batches, and can be read only once."""
    return hasattr(x, "__next__")


def opened(kernel: Kernel, x: Any, targets: bool) -> Any:
    """Return what Keras reads batches from, of a dataset or a generator that fits.

    Args:
        kernel: The kernel.
        x: A dataset, or an iterator of (x,), (x, y), (x, y, sample_weight), or of inputs
            that are no tuple.
        targets: Whether there must be targets.

    Raises:
        ValueError: For datasets of single rows, or without targets. Batches of a
            generator are looked at when they come.
    """
    if is_dataset(x):
        check_batches(kernel, "x", x, targets)
        return x
    return _checked(kernel, x, targets)


def _checked(kernel: Kernel, generator: Iterator[Any], targets: bool) -> Iterator[Any]:
    """Yield batches of a generator, as tuples."""
    for batch in generator:
        x, y, weights = keras.utils.unpack_x_y_sample_weight(batch)
        x = check_rows("x", x, _network(kernel))
        kernel.check_shapes("x", x)
        if not targets:
            yield (x,)
            continue
        if y is None:
            raise ValueError(_NO_TARGETS)
        y = np.asarray(plain_targets("y", y, _rows.count(x)))
        yield (x, y) if weights is None else (x, y, np.asarray(weights))


sentence("`x` holds NaN or Inf")  # of a batch that a generator yields inside a graph

_NO_TARGETS = (
    "`x` must yield (x, y) batches: predictions are compared with targets. Received: "
    "batches without y"
)


def check_batches(kernel: Kernel, name: str, x: Any, targets: bool = False) -> None:
    """Refuse a dataset of single rows, or of rows of another shape, before reading it.

    Args:
        kernel: The kernel.
        name: Of the argument.
        x: A dataset; of a `PyDataset`, nothing is known beforehand.
        targets: Whether targets must come with each batch.
    """
    if not isinstance(x, tf.data.Dataset):
        return
    spec, y, _ = keras.utils.unpack_x_y_sample_weight(x.element_spec)
    if targets and y is None:
        raise ValueError(_NO_TARGETS)
    parts = keras.tree.flatten(spec)
    if not all(isinstance(part, tf.TensorSpec) and part.shape.rank for part in parts):
        return
    inputs = getattr(_network(kernel), "inputs", None) or []
    if len(inputs) == len(parts) and all(map(_is_one_row, parts, inputs)):
        raise ValueError(
            f"`{name}` yields single rows: batch it, with `{name.split()[-1]}.batch(...)`. "
            f"Received: elements of shape {tuple(parts[0].shape)}, as the network's rows"
        )
    kernel.check_shapes(name, spec)


def _is_one_row(part: tf.TensorSpec, wanted: Any) -> bool:
    row = tf.TensorShape(wanted.shape[1:])
    if row.as_list() == [1]:  # Keras takes `(n,)` for `(n, 1)`
        return False
    return part.shape.rank == row.rank and bool(part.shape.is_compatible_with(row))


def _network(kernel: Kernel) -> Any:
    return getattr(kernel, "network", None)

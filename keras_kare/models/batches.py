"""Reading datasets: a batch after the other, as far as they are to be read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _rows
from keras_kare._arrays import plain_targets
from keras_kare.kernels.memory import available, in_words

LARGE = 2**28
"""Bytes of a dataset's rows from which on free memory is looked at."""


def is_dataset(x: Any) -> bool:
    """Tell whether `x` yields batches by itself."""
    return isinstance(x, tf.data.Dataset | keras.utils.PyDataset)


def never_ends(x: Any) -> bool:
    """Tell whether `x` is a dataset that is known to be endless."""
    if isinstance(x, keras.utils.PyDataset):
        return x.num_batches is None
    endless = tf.data.INFINITE_CARDINALITY
    return isinstance(x, tf.data.Dataset) and int(x.cardinality()) == endless


def check_ends(x: Any, steps: int | None) -> None:
    """Refuse to read an endless dataset to its end."""
    if steps is None and never_ends(x):
        raise ValueError(
            "`x` is an endless dataset: say how many batches to read with `steps`, or by "
            "`dataset.take(...)`. Received: steps=None"
        )


def steps_of_rows(x: Any, steps_per_epoch: int | None) -> int | None:
    """Return how many batches of a training dataset hold the rows; `None` for all.

    Keras goes on in a dataset where the last epoch stopped, so that training sees all of
    one that is known to end; of others, the first epoch's batches are the rows.
    """
    if isinstance(x, tf.data.Dataset) and int(x.cardinality()) >= 0:
        return None
    if isinstance(x, keras.utils.PyDataset) and x.num_batches is not None:
        return None
    return steps_per_epoch


def concatenated(
    dataset: Any, steps: int | None, name: str
) -> tuple[Any, Any, np.ndarray | None, int]:
    """Return all inputs, targets and weights of a dataset, and its batch size."""
    batches = list(_held(read(dataset, steps, name), name))
    if not batches:
        raise ValueError(f"`{name}x` has no rows. Received: an empty dataset")
    for i, (x, _, _) in enumerate(batches):
        count = _rows.count(x)
        if count < 2 and not name:
            raise ValueError(
                f"`x` yields a batch of {count} rows (batch {i}), which has no KARE. Use "
                "`drop_remainder=True`, or another batch size."
            )
    x = keras.tree.map_structure(_join, *[x for x, _, _ in batches])
    y = _join(*[np.asarray(y) for _, y, _ in batches])
    weights = [w for _, _, w in batches if w is not None]
    joined = _join(*[np.ravel(w) for w in weights]) if weights else None
    return x, y, joined, len(batches[0][1])


def _held(batches: Iterator[Any], name: str) -> Iterator[Any]:
    """Yield batches while there is memory for them: a dataset may never end."""
    held, checked = 0, LARGE
    for i, batch in enumerate(batches):
        held += sum(np.asarray(part).nbytes for part in keras.tree.flatten(batch))
        if held > checked:
            checked = 2 * held
            if held > available():  # joining them takes as much again
                raise MemoryError(
                    f"The first {i + 1} batches of `{name}x` take {in_words(held)}, and as "
                    "much again is not free. If the dataset never ends, say how many "
                    "batches are one epoch with `steps_per_epoch` (or `validation_steps`) "
                    "of `fit`, or by `dataset.take(...)`."
                )
        yield batch


def _join(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts)


def _in_words(targets: int, weighted: bool) -> str:
    return f"{targets} targets and {'weights' if weighted else 'no weights'}"


def read(dataset: Any, steps: int | None, name: str = "") -> Iterator[Any]:
    """Batches of a dataset, that fit together: inputs, targets, weights or `None`.

    Args:
        dataset: A `tf.data.Dataset` or `PyDataset` of (x, y) or (x, y, sample_weight).
        steps: How many batches to read, at most; `None` for all.
        name: Prefix of argument names in errors: "" or "validation ".

    Raises:
        ValueError: For batches that do not fit together, and endless datasets
            without `steps`.
    """
    if steps is None and never_ends(dataset):
        raise ValueError(
            f"`{name}x` is an endless dataset: say how many batches are one epoch with "
            "`steps_per_epoch` (or `validation_steps`) of `fit`, or by "
            "`dataset.take(...)`."
        )
    batches: Any
    if isinstance(dataset, keras.utils.PyDataset):
        counts = [count for count in (steps, dataset.num_batches) if count is not None]
        batches = (dataset[i] for i in range(min(counts)))
    else:
        batches = (dataset if steps is None else dataset.take(steps)).as_numpy_iterator()
    first: tuple[int, bool] | None = None
    for i, batch in enumerate(batches):
        x, y, weights = keras.utils.unpack_x_y_sample_weight(batch)
        if y is None:
            raise ValueError(
                f"`{name}x` must yield (x, y) batches: kernels are trained and solved on "
                "targets. Received: batches without y"
            )
        x = keras.tree.map_structure(np.asarray, x)
        inputs = keras.tree.flatten(x)[0]
        y = plain_targets(f"{name}y", y, len(inputs) if np.ndim(inputs) else None)
        if np.ndim(y) == 0 or np.ndim(inputs) == 0 or len(inputs) != len(y):
            raise ValueError(
                f"`{name}x` yields single rows, or other numbers of x than of y: use "
                "`dataset.batch(...)`, so that KARE sees many rows at once. Received: x of "
                f"shape {inputs.shape}, y of shape {np.shape(y)}"
            )
        now = int(np.prod(np.shape(y)[1:])), weights is not None
        first = first or now
        if now != first:
            raise ValueError(
                f"`{name}x` must yield the same number of targets with every batch, and a "
                "`sample_weight` with every batch or with none. Received: batch 0 with "
                f"{_in_words(*first)}, batch {i} with {_in_words(*now)}"
            )
        yield x, y, weights

"""Training and validation data as rows: what a kernel machine is solved on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _rows, _validation
from keras_kare.models.batches import concatenated, is_dataset, read
from keras_kare.solvers.stream import Stream

FULL_BATCH = 4096
"""Most rows of a default full batch."""

USUAL_BATCH = 1024
"""About how many rows a default batch has above that."""


@dataclass(frozen=True)
class Rows:
    """Checked inputs and targets.

    Attributes:
        x: Nested structure of tensors, `(n, ...)`.
        y: `(n, c)`.
        batch_size: Of the dataset that the rows came from; all rows for arrays.
        weights: How often each row counts, `(n,)`; `None` for once.
    """

    x: Any
    y: np.ndarray
    batch_size: int = 0
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: np.ndarray) -> Rows:
        """The rows with these numbers."""
        return Rows(
            _rows.take(self.x, indices),
            self.y[indices],
            weights=None if self.weights is None else self.weights[indices],
        )

    def spread(self, most: int) -> Rows:
        """At most so many of the rows, evenly spread."""
        if len(self) <= most:
            return self
        return self.take(np.linspace(0, len(self) - 1, most).astype(int))

    def parts(self) -> tuple[Any, np.ndarray, np.ndarray | None]:
        """Inputs, targets and weights, as Keras takes validation data."""
        return self.x, self.y, self.weights

    def split(self, fraction: float) -> tuple[Rows, Rows]:
        """The first rows and the last `fraction` of them, as Keras splits."""
        first = math.floor(len(self) * (1.0 - fraction))
        if first < 2 or first == len(self):
            raise ValueError(
                "`validation_split` leaves too few rows to train or to validate on. "
                f"Received: validation_split={fraction}, {len(self)} rows"
            )
        numbers = np.arange(len(self))
        return self.take(numbers[:first]), self.take(numbers[first:])


def in_one_batch(parts: tuple[Any, ...], shuffle: bool, fixed: bool) -> tf.data.Dataset:
    """An endless dataset of one batch, of all rows.

    Of arrays, Keras makes two pipelines an epoch, which on a few hundred rows takes longer
    than a step and a validation. Of this dataset it makes one for all epochs.

    Args:
        parts: Inputs, and also targets and weights, unless `None`; tensors or arrays.
        shuffle: Whether each batch has the rows in another order.
        fixed: Whether functions are traced for this number of rows, or for any.
    """
    given = tuple(part for part in parts if part is not None)
    given = keras.tree.map_structure(tf.convert_to_tensor, given)
    given = keras.tree.lists_to_tuples(given)  # lists would become tensors
    rows = _rows.count(given)
    dataset = tf.data.Dataset.from_tensor_slices(given)
    if shuffle:
        dataset = dataset.shuffle(rows)
    options = tf.data.Options()
    options.autotune.enabled = False  # there is nothing to tune
    options.experimental_optimization.apply_default_optimizations = False
    return dataset.batch(rows, drop_remainder=fixed).repeat().with_options(options)


def check_alone(
    y: Any, sample_weight: Any = None, class_weight: Any = None, name: str = ""
) -> None:
    """Refuse what cannot be given beside a dataset.

    Raises:
        ValueError: If any is not `None`.
    """
    if y is not None:
        raise ValueError(
            f"`{name}y` must not be given with a dataset, whose batches are (x, y). "
            f"Received: {name}y of type {type(y).__name__}"
        )
    if sample_weight is not None or class_weight is not None:
        raise ValueError(
            f"`{name}sample_weight` and `class_weight` need arrays: let the dataset "
            "yield (x, y, sample_weight) instead."
        )


def gather(
    x: Any,
    y: Any,
    steps: int | None,
    name: str = "",
    sample_weight: Any = None,
    class_weight: Any = None,
) -> Rows:
    """All rows of arrays, of a `tf.data.Dataset` or of a `PyDataset`.

    Args:
        x: Inputs, or a dataset of `(x, y)` or `(x, y, sample_weight)` batches.
        y: Targets, or `None` for a dataset.
        steps: How many batches of a dataset to read, at most; `None` for all.
        name: Prefix of argument names in errors: "" or "validation ".
        sample_weight: How often each row counts, `(n,)`; `None` for a dataset.
        class_weight: How often rows of each class count, by its number; arrays only.

    Raises:
        ValueError: As the checks of inputs and targets; for generators, which can be
            read only once; for endless datasets without `steps`.
    """
    batch_size = 0
    if is_dataset(x):
        check_alone(y, sample_weight, class_weight, name)
        x, y, sample_weight, batch_size = concatenated(x, steps, name)
    elif hasattr(x, "__next__") or (hasattr(x, "__iter__") and not hasattr(x, "__len__")):
        raise ValueError(
            f"`{name}x` must be arrays, a `tf.data.Dataset` or a `keras.utils.PyDataset`: "
            "the rows are read once more to solve the head, and a generator can be read "
            f"only once. Received: {name}x of type {type(x).__name__}"
        )
    x = _validation.check_rows(f"{name}x", without_pandas(x))
    rows = _rows.count(x)
    y = _validation.check_targets(f"{name}y", y, rows)
    _validation.check_fits(f"{name}y", y)
    weights = _row_weights(f"{name}sample_weight", sample_weight, class_weight, y)
    return Rows(x, y, batch_size or rows, weights)


def _row_weights(
    name: str, sample_weight: Any, class_weight: Any, y: np.ndarray
) -> np.ndarray | None:
    if class_weight is not None:
        if sample_weight is not None:
            raise ValueError(
                f"Pass either `{name}` or `class_weight`: multiply them yourself to "
                "combine them. Received: both"
            )
        sample_weight = _validation.weights_of_classes(class_weight, y)
    if sample_weight is None:
        return None
    return _validation.check_weights(name, sample_weight, len(y))


def stream(dataset: Any, steps: int | None) -> Stream:
    """The batches of a dataset, checked as they come; read anew each time.

    Args:
        dataset: A `tf.data.Dataset` or `PyDataset` of (x, y) or (x, y, sample_weight).
        steps: How many batches to read, at most; `None` for all.
    """

    def batches() -> Iterator[Any]:
        for x, y, weights in read(dataset, steps):
            x = _validation.check_rows("x", x)
            rows = _rows.count(x)
            y = _validation.check_targets("y", y, rows)
            _validation.check_fits("y", y)
            y = np.asarray(y, "float64")
            if weights is not None:  # a batch alone may have no row that counts
                weights = _validation.check_weights("sample_weight", weights, rows, 0)
            yield x, y, weights

    try:
        return Stream(batches)
    except StopIteration:
        raise ValueError("`x` has no rows. Received: an empty dataset") from None


def begin(dataset: Any, steps: int | None, most: int) -> Rows:
    """The first rows of a dataset, a few batches of them."""
    xs, ys, ws = [], [], []
    for x, y, weights in stream(dataset, steps).batches():
        xs.append(x)
        ys.append(y)
        ws.append(weights)
        if sum(map(len, ys)) >= most:
            break
    given = [w for w in ws if w is not None]
    return Rows(
        _rows.joined(xs),
        np.concatenate(ys),
        len(ys[0]),
        np.concatenate(given) if given else None,
    )


def gather_validation(data: Any, steps: int | None) -> Rows | None:
    """Rows of `validation_data`, in any of the forms that Keras takes."""
    if data is None:
        return None
    if is_dataset(data):
        return gather(data, None, steps, "validation ")
    if not isinstance(data, list | tuple) or len(data) not in (2, 3):
        raise ValueError(
            "`validation_data` must be (x, y) or a dataset. "
            f"Received: validation_data of type {type(data).__name__}"
        )
    weights = data[2] if len(data) == 3 else None
    return gather(data[0], data[1], None, "validation ", weights)


def default_batch_size(rows: int) -> int:
    """All rows up to 4,096, else batches of about 1,024 that are evenly split."""
    if rows <= FULL_BATCH:
        return rows
    return math.ceil(rows / math.ceil(rows / USUAL_BATCH))


def prediction_batch_size(batch_size: Any) -> int:
    """Rows to predict at a time: 1,024 unless told.

    Raises:
        ValueError: If it is no positive whole number.
    """
    if batch_size is None:
        return 1024
    if not _validation.is_whole(batch_size) or batch_size < 1:
        raise ValueError(
            "`batch_size` must be a positive whole number, or None for 1,024. "
            f"Received: batch_size={batch_size!r}"
        )
    return int(batch_size)


def even_batch_size(rows: int, batches: int) -> int:
    """A size for about so many even batches, none of one row."""
    size = math.ceil(rows / batches)
    return size if rows % size != 1 else _fitting(size, rows)


def check_batch_size(batch_size: Any, rows: int) -> None:
    """Refuse sizes whose batches, the last one too, would have a single row."""
    if not _validation.is_whole(batch_size) or batch_size < 2:
        raise ValueError(
            "`batch_size` must be a whole number of at least 2: KARE needs the kernel "
            f"between rows. Received: batch_size={batch_size!r}"
        )
    if rows % batch_size == 1:
        raise ValueError(
            "`batch_size` leaves a last batch of one row, which has no KARE. Use another "
            f"size, for example {_fitting(int(batch_size), rows)}. Received: "
            f"batch_size={batch_size}, {rows} rows"
        )


def _fitting(batch_size: int, rows: int) -> int:
    larger = range(batch_size + 1, rows + 1)
    return next(size for size in larger if rows % size != 1)


def without_pandas(x: Any) -> Any:
    """The array of a data frame; anything else as it is."""
    return x.to_numpy() if hasattr(x, "to_numpy") else x

"""From what a user passes to checked rows, and from rows to what Keras is given."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _labels, _rows, _validation
from keras_kare._labels import Classes
from keras_kare.machine import Rows
from keras_kare.models.batches import concatenated, is_dataset, read
from keras_kare.solvers.stream import Batch, Stream, joined

FULL_BATCH = 4096
"""Most rows of a default full batch."""

USUAL_BATCH = 1024
"""About how many rows a default batch has above that."""


def in_one_batch(
    model: keras.Model,
    parts: tuple[Any, ...],
    batch_size: int,
    steps: int | None,
    shuffle: bool = False,
    fixed: bool = False,
) -> tf.data.Dataset | None:
    """Return an endless dataset of one batch, where Keras takes all rows in one step.

    Of arrays, Keras makes two pipelines an epoch, which on a few hundred rows takes longer
    than a step and a validation. Of this dataset it makes one for all epochs.

    Args:
        model: Whose `fit`, `evaluate` or `predict` is to come.
        parts: Inputs, and also targets and weights, unless `None`; tensors or arrays.
        batch_size: Rows of a step.
        steps: How many steps were asked for; `None` for all rows.
        shuffle: Whether each batch has the rows in another order.
        fixed: Whether functions are traced for this number of rows, or for any.

    Returns:
        The dataset; `None` where there are more batches, or steps are counted.
    """
    given = tuple(part for part in parts if part is not None)
    rows = _rows.count(given)
    if steps is not None or model.steps_per_execution != 1 or batch_size < rows:
        return None
    given = keras.tree.map_structure(tf.convert_to_tensor, given)
    given = keras.tree.lists_to_tuples(given)  # lists would become tensors
    dataset = tf.data.Dataset.from_tensor_slices(given)
    if shuffle:
        dataset = dataset.shuffle(rows)
    options = tf.data.Options()
    options.autotune.enabled = False  # there is nothing to tune
    options.experimental_optimization.apply_default_optimizations = False
    return dataset.batch(rows, drop_remainder=fixed).repeat().with_options(options)


def for_training(
    model: keras.Model,
    rows: Rows,
    batch_size: int,
    shuffle: bool,
    steps: int | None = None,
) -> dict[str, Any]:
    """Return arguments of `keras.Model.fit`: arrays, or a dataset of one batch."""
    whole = in_one_batch(model, rows.parts(), batch_size, steps, shuffle, fixed=True)
    if whole is not None:
        return {"x": whole, "steps_per_epoch": 1, "shuffle": False}
    x, y, weights = rows.parts()
    given = {"x": x, "y": y, "sample_weight": weights, "batch_size": batch_size}
    return {**given, "steps_per_epoch": steps, "shuffle": shuffle}


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
    task: str = "auto",
    classes: Classes | None = None,
) -> Rows:
    """Gather all rows of arrays, of a `tf.data.Dataset` or of a `PyDataset`.

    Args:
        x: Inputs, or a dataset of `(x, y)` or `(x, y, sample_weight)` batches.
        y: Targets, or `None` for a dataset.
        steps: How many batches of a dataset to read, at most; `None` for all.
        name: Prefix of argument names in errors: "" or "validation ".
        sample_weight: How often each row counts, `(n,)`; `None` for a dataset.
        class_weight: How often rows of each class count, by its label or number; arrays
            only.
        task: How targets are read; see `keras_kare._labels.read`.
        classes: Those that labels must be of, where they are known.

    Raises:
        ValueError: As the checks of inputs and targets; for generators, which can be
            read only once; for endless datasets without `steps`.
    """
    batch_size = 0
    if is_dataset(x):
        check_alone(y, sample_weight, class_weight, name)
        x, y, sample_weight, batch_size = concatenated(x, steps, name)
    elif hasattr(x, "__next__"):
        raise ValueError(
            f"`{name}x` must be arrays, a `tf.data.Dataset` or a `keras.utils.PyDataset`: "
            "the rows are read once more to solve the head, and a generator can be read "
            f"only once. Received: {name}x of type {type(x).__name__}"
        )
    x = _validation.check_rows(f"{name}x", x)
    rows = _rows.count(x)
    y, classes = _labels.read(f"{name}y", y, rows, task, classes)
    _validation.check_fits(f"{name}y", y)
    if class_weight is not None:
        if sample_weight is not None:
            raise ValueError(
                f"Pass either `{name}sample_weight` or `class_weight`: multiply them "
                "yourself to combine them. Received: both"
            )
        sample_weight = _labels.weights_of_classes(class_weight, y, classes)
    if sample_weight is not None:
        sample_weight = _validation.check_weights(
            f"{name}sample_weight", sample_weight, len(y)
        )
    return Rows(x, y, sample_weight, batch_size or rows, classes)


def stream(
    dataset: Any,
    steps: int | None,
    task: str = "auto",
    classes: Classes | None = None,
) -> Stream:
    """Return the batches of a dataset, checked as they come; read anew each time.

    Args:
        dataset: A `tf.data.Dataset` or `PyDataset` of (x, y) or (x, y, sample_weight).
        steps: How many batches to read, at most; `None` for all.
        task: How targets are read.
        classes: What labels are of.
    """

    def batches() -> Iterator[Any]:
        for x, y, weights in read(dataset, steps):
            x = _validation.check_rows("x", x)
            rows = _rows.count(x)
            y, _ = _labels.read("y", y, rows, task, classes)
            _validation.check_fits("y", y)
            y = np.asarray(y, "float64")
            if weights is not None:  # a batch alone may have no row that counts
                weights = _validation.check_weights("sample_weight", weights, rows, 0)
            yield x, y, weights

    try:
        return Stream(batches)
    except StopIteration:
        raise ValueError("`x` has no rows. Received: an empty dataset") from None


def begin(
    dataset: Any, steps: int | None, most: int, task: str, classes: Classes | None
) -> Rows:
    """Read the first rows of a dataset, a few batches of them: `most` that count."""
    first: list[Batch] = []
    for batch in stream(dataset, steps, task, classes).batches():
        first.append(batch)
        if sum(_counting(y, weights) for _, y, weights in first) >= most:
            break
    return Rows(*joined(first), len(first[0][1]), classes)


def _counting(y: np.ndarray, weights: np.ndarray | None) -> int:
    """Count the rows whose weight is not 0."""
    return len(y) if weights is None else int(np.count_nonzero(weights))


def gather_validation(data: Any, steps: int | None, classes: Classes | None) -> Rows | None:
    """Gather rows of `validation_data`, in any of the forms that Keras takes.

    Args:
        data: As `validation_data` of `fit`.
        steps: How many batches of a dataset to read, at most.
        classes: Those of the training rows; `None`: targets are numbers, as theirs.
    """
    if data is None:
        return None
    if is_dataset(data):
        return gather(data, None, steps, "validation ", **read_as(classes))
    if not isinstance(data, list | tuple) or len(data) not in (2, 3):
        raise ValueError(
            "`validation_data` must be (x, y) or a dataset. "
            f"Received: validation_data of type {type(data).__name__}"
        )
    weights = data[2] if len(data) == 3 else None
    x, y = data[:2]
    return gather(x, y, None, "validation ", weights, **read_as(classes))


def read_as(classes: Classes | None) -> dict[str, Any]:
    """Return arguments of `gather`: as labels of these classes, or as numbers."""
    return {"task": "regression" if classes is None else "auto", "classes": classes}


def default_batch_size(rows: int) -> int:
    """Return all rows up to 4,096, above that about 1,024, evenly split."""
    if rows <= FULL_BATCH:
        return rows
    return math.ceil(rows / math.ceil(rows / USUAL_BATCH))


def prediction_batch_size(batch_size: Any) -> int:
    """Return how many rows to predict at a time: 1,024 unless told.

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
    """Return a size for about so many even batches, none of one row."""
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

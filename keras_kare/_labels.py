"""Labels: what classes are, and the targets in {-1, 1} that stand for them.

Kernel machines fit numbers. Labels of two classes become one column, 1 for the second of
them; labels of more become one column a class, 1 for a row's own. Columns that are one-hot
already, with 0 or with -1 elsewhere, stay as many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _sentences, _validation
from keras_kare._sentences import sentence

TASKS = ("auto", "regression", "classification")

FEW_A_CLASS = 5
"""Rows a class, below which whole numbers may be quantities."""

UNKNOWN = "`{name}` holds labels that are none of the {count} classes ({labels})."
sentence("`y` holds labels that are none of the")

MANY, RARE = 10, 3
"""So do they where there are more classes than many, and one has less rows than rare."""

SPREAD = 30.0
"""How many times as far as others one column of targets may spread, without a warning."""

QUANTITIES = 'if they are quantities pass `KAREModel(..., task="regression")`'


@dataclass(frozen=True)
class Classes:
    """The classes of a classification.

    Attributes:
        labels: `(k,)`, sorted, of the type that they came in.
        columns: Whether rows of one-hot columns stand for them.
    """

    labels: np.ndarray
    columns: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def width(self) -> int:
        """Columns of the targets."""
        return 1 if len(self) == 2 and not self.columns else len(self)

    def codes(self, name: str, y: np.ndarray) -> np.ndarray:
        """Return the numbers of rows' classes, `(n,)`.

        Args:
            name: Of the argument.
            y: `(n, 1)` labels, or `(n, k)` one-hot.

        Raises:
            ValueError: If one is not known, or columns are none of these.
        """
        if y.shape[1] == len(self) and is_one_hot(y):
            return np.asarray(np.argmax(y, axis=1))
        if y.shape[1] != 1:
            raise ValueError(
                f"`{name}` must hold labels of the {len(self)} classes in one column, or "
                f"be one-hot. Received: {name} of shape {y.shape}"
            )
        labels, given = self.labels, _like(self.labels, y[:, 0])
        known = np.zeros(len(given), bool)
        if _is_text(labels) == _is_text(given):
            places = np.searchsorted(labels, given)
            known = labels[np.minimum(places, len(labels) - 1)] == given
        if not np.all(known):
            unknown = np.array(list(dict.fromkeys(given[~known].tolist())), object)
            raise ValueError(f"{self._unknown(name)} Received: {in_words(unknown, 3)}")
        return places

    def targets(self, name: str, y: np.ndarray) -> np.ndarray:
        """Return what stands for labels, `(n, width)`; errors as of `codes`."""
        own = self.codes(name, y)[:, None] == np.arange(len(self))
        return (2.0 * own[:, -self.width :] - 1.0).astype(keras.config.floatx())

    def targets_in_graph(self, y: tf.Tensor) -> tf.Tensor:
        """Return what stands for a batch of labels, for `tf.data`.

        Raises:
            tf.errors.InvalidArgumentError: For labels that are none of the classes, when
                they come.
        """
        y = tf.reshape(y, (tf.shape(y)[0], -1 if y.shape.rank == 1 else y.shape[-1]))
        if y.shape[1] == len(self) > 1:
            own = tf.equal(y, tf.reduce_max(y, axis=1, keepdims=True))
        else:
            labels = self.labels
            kind = tf.string if y.dtype == tf.string else tf.float64
            labels = tf.constant(labels.tolist(), kind)
            given = y if kind == tf.string else tf.cast(y, kind)
            own = tf.equal(tf.reshape(given, (-1, 1)), labels)
        each = tf.debugging.assert_equal(
            tf.reduce_sum(tf.cast(own, tf.int32), axis=1),
            1,
            self._unknown("y"),
        )
        with tf.control_dependencies([] if each is None else [each]):
            return 2.0 * tf.cast(own[:, -self.width :], keras.config.floatx()) - 1.0

    def _unknown(self, name: str) -> str:
        return UNKNOWN.format(name=name, count=len(self), labels=in_words(self.labels))

    def of(self, scores: np.ndarray) -> np.ndarray:
        """Return the labels of the largest scores, `(n,)`; of one column, of its sign."""
        one = scores.shape[1] == 1
        codes = (scores[:, 0] > 0.0).astype(int) if one else np.argmax(scores, axis=1)
        return self.labels[codes]

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        labels, kind = self.labels.tolist(), self.labels.dtype.str
        if labels and isinstance(labels[0], bytes):
            labels = [label.decode("utf-8", "surrogateescape") for label in labels]
            kind += " bytes"
        return {"labels": labels, "type": kind, "columns": self.columns}

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> Classes:
        """Return the classes of `to_json()`."""
        kind, *of_bytes = config["type"].split()
        labels = config["labels"]
        if of_bytes:
            labels = [label.encode("utf-8", "surrogateescape") for label in labels]
        return cls(np.array(labels, kind), config["columns"])


def read(
    name: str, y: Any, rows: int, task: str = "auto", known: Classes | None = None
) -> tuple[np.ndarray, Classes | None]:
    """Return targets, `(n, c)` floats, and the classes that they stand for, if any.

    Args:
        name: Of the argument.
        y: Labels, one-hot columns, or numbers: `(n,)` or `(n, ...)`.
        rows: `n`.
        task: `"auto"`: integers, booleans and text are labels, floats are numbers;
            `"regression"`, `"classification"`.
        known: Classes that were found before.

    Raises:
        ValueError: For what is neither, and labels that are not known.
    """
    y = _validation.check_target_rows(name, y, rows)
    if known is None:
        if are_numbers(y, task):
            return _validation.check_targets(name, y, rows), None
        known = found(name, y, task)
    elif y.dtype.kind == "f":
        _validation.check_finite(name, y)
    return known.targets(name, y), known


def are_numbers(y: np.ndarray, task: str) -> bool:
    """Tell whether targets are to be read as numbers, and not as labels."""
    return task == "regression" or (task == "auto" and y.dtype.kind == "f")


def found(name: str, y: np.ndarray, task: str = "auto") -> Classes:
    """Return the classes of labels `(n, 1)`, or of one-hot columns `(n, k)`.

    Raises:
        ValueError: If they are neither, or all of one class.
    """
    if y.shape[1] > 1:
        return _of_columns(name, y)
    column = y[:, 0]
    if y.dtype.kind == "O":
        kinds = check_objects(name, column)
        if not kinds <= {"str", "bytes"}:
            raise ValueError(_ONE_TYPE.format(name=name, kinds=", ".join(sorted(kinds))))
    elif y.dtype.kind == "f":
        _validation.check_finite(name, y)
        if np.any(column != np.round(column)):
            raise ValueError(
                f"`{name}` must hold labels, and holds numbers with fractions: "
                f"{QUANTITIES}. Received: task={task!r}"
            )
    elif y.dtype.kind not in "iubUS":
        raise ValueError(
            f"`{name}` must hold numbers or labels. Received: {name} of dtype {y.dtype}"
        )
    labels = np.unique(column)
    if len(labels) < 2:
        raise ValueError(
            f"`{name}` must hold labels of at least two classes; {QUANTITIES}. "
            f"Received: only {in_words(labels)}"
        )
    return Classes(labels)


def many(classes: Classes | None, y: np.ndarray, metrics: Sequence[str] = ()) -> str:
    """Return what to tell of whole numbers that may be quantities; or nothing.

    Args:
        classes: What they were taken for.
        y: The targets that stand for them, `(n, c)`.
        metrics: Names of metrics of numbers that are wanted.
    """
    if classes is None or classes.columns or classes.labels.dtype.kind not in "iu":
        return ""
    rows, fewest = len(y), np.min(np.sum(y > 0.0, axis=0))
    few = rows < FEW_A_CLASS * len(classes)
    few |= len(classes) > MANY and fewest < RARE  # as counts have tails
    if len(classes) == 2 or not (few or metrics):
        return ""
    wanted = f", and metrics of numbers are wanted ({', '.join(metrics)})" * bool(metrics)
    return (
        f"`y` holds {len(classes)} different whole numbers in {rows} rows, which are taken "
        f"for labels of as many classes{wanted}: {QUANTITIES}, or floats."
    )


def unequal(y: np.ndarray) -> str:
    """Return what to tell of columns of numbers in different units; or nothing.

    Args:
        y: Targets, `(n, c)`, which are numbers.
    """
    spread = np.std(y, axis=0, dtype="float64")
    spread = spread[spread > 0.0]
    if not len(spread) or spread.max() <= SPREAD * spread.min():
        return ""
    return (
        f"Columns of `y` have standard deviations from {spread.min():.3g} to "
        f"{spread.max():.3g}: KARE and `val_loss` are means over them, which the largest "
        "rule. Divide each by its own, for example by sklearn.preprocessing.StandardScaler."
    )


def resemblance(y: np.ndarray, outputs: int | None) -> str:
    """Return what to tell of floats that look like labels; or nothing.

    Args:
        y: Targets, `(n, c)`, which are taken for numbers.
        outputs: How many outputs the network has, if known.
    """
    few = np.unique(y[: 2**14])[:101]
    if y.shape[1] > 1:
        looks = np.array_equal(few, [0.0, 1.0]) and is_one_hot(y)
    else:
        most = 2 if outputs is None else max(2, outputs)
        looks = 2 <= len(few) <= most and bool(np.all(np.isin(few, np.arange(most))))
    if not looks or not np.all(np.isin(np.unique(y), few)):
        return ""
    return (
        f"`y` holds {'one-hot' if y.shape[1] > 1 else 'the'} floats {in_words(few)}, which "
        "are taken for numbers. If they are labels, pass integers or "
        '`KAREModel(..., task="classification")`; if not, `task="regression"`.'
    )


def is_one_hot(y: np.ndarray) -> bool:
    """Tell whether each row of `(n, k)` has one 1, and throughout 0 or -1 elsewhere."""
    if y.dtype.kind not in "fiub" or y.shape[1] < 2:
        return False
    y = y.astype("float64")
    ones = y == 1.0
    others = np.unique(y[~ones])
    alike = len(others) == 1 and others[0] in (0.0, -1.0)
    return alike and bool(np.all(np.sum(ones, axis=1) == 1))


def are_signs(y: np.ndarray) -> bool:
    """Tell whether targets `(n, c)` stand for classes: -1 and 1, one 1 a row."""
    if y.shape[1] > 1:
        return is_one_hot(y) and not np.any(y == 0.0)
    return bool(np.all(np.abs(y) == 1.0))


def weights_of_classes(class_weight: Any, y: np.ndarray, classes: Classes | None) -> Any:
    """Return the weight of each row's class, `(n,)`; 1 where none is named, as in Keras.

    Args:
        class_weight: A dict, by labels or by their numbers: of one column of targets, 0 is
            the lower and 1 the upper; of several columns, the largest is the row's class.
        y: Targets, `(n, c)`.
        classes: What they stand for, if known.

    Raises:
        ValueError: If it is no dict, there are no classes, or it names what is none.
    """
    if not isinstance(class_weight, dict):
        raise ValueError(
            "`class_weight` must be a dict from the label or the number of a class to its "
            "weight. "
            f"Received: class_weight of type {type(class_weight).__name__}"
        )
    if classes is None and y.shape[1] == 1 and len(np.unique(y)) > 2:
        raise ValueError(
            "`class_weight` needs classes, and `y` has one column of more than two "
            "values. Use `sample_weight`. Received: y of "
            f"{len(np.unique(y))} different values"
        )
    codes = (y[:, 0] > 0).astype(int) if y.shape[1] == 1 else np.argmax(y, axis=1)
    numbers = list(range(max(2, y.shape[1])))
    labels = numbers if classes is None else classes.labels.tolist()
    names = labels if set(class_weight) <= set(labels) else numbers
    if unknown := [name for name in class_weight if name not in names]:
        raise ValueError(
            "`class_weight` must name classes of `y`, by their labels or their numbers: of "
            "two, 0 is the lower and 1 the upper; else that of the column. Received: "
            f"class_weight for {_sentences.listed([repr(name) for name in unknown])}, and "
            f"classes {in_words(np.array(labels, object))}"
        )
    return np.array([class_weight.get(name, 1.0) for name in names], "float64")[codes]


def in_words(labels: np.ndarray, most: int = 5) -> str:
    """Return a few labels as text."""
    listed = [
        repr(label) if isinstance(label, str | bytes) else str(label)
        for label in labels[:most].tolist()
    ]
    return ", ".join(listed) + (", …" if len(labels) > most else "")


def _of_columns(name: str, y: np.ndarray) -> Classes:
    if is_one_hot(y):
        return Classes(np.arange(y.shape[1]), columns=True)
    zeros_and_ones = y.dtype.kind in "fiub" and set(np.unique(y)) <= {-1, 0, 1}
    what = (
        "rows with several classes, or none: those are targets, one column a label, which "
        'need `2.0 * y - 1.0` and `task="regression"`'
        if zeros_and_ones
        else f"columns that are no one-hot classes: {QUANTITIES}, labels in one column"
    )
    raise ValueError(f"`{name}` has {what}. Received: {name} of shape {y.shape}")


_ONE_TYPE = (
    "`{name}` must hold numbers or labels of one type, without holes. "
    "Received: {name} with entries of type {kinds}"
)


def check_objects(name: str, column: np.ndarray) -> set[str]:
    """Return the names of the types of objects, `(n,)`, all of them text or none.

    Raises:
        ValueError: For text beside something else, and for holes.
    """
    kinds = {type(label).__name__ for label in column.tolist()}
    if "NoneType" in kinds or (len(kinds) > 1 and kinds & {"str", "bytes"}):
        raise ValueError(_ONE_TYPE.format(name=name, kinds=", ".join(sorted(kinds))))
    return kinds


def _like(labels: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Return text as bytes, or bytes as text, where labels are such."""
    if isinstance(labels[0], str) and isinstance(given[0], bytes):
        return np.array([label.decode("utf-8", "replace") for label in given])
    if isinstance(labels[0], bytes) and isinstance(given[0], str):
        return np.array([label.encode("utf-8") for label in given])
    return given


def _is_text(labels: np.ndarray) -> bool:
    return isinstance(labels[0], str | bytes)

"""The cases that not all learners take: missing classes, and rows that say nothing."""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_limits

from keras_kare.datasets.preparation import checked_labels, matrices
from keras_kare.experiments.task import Configuration, Learner, Path, Task


def complete(scores: Learner, names: tuple[str, ...] = ("",)) -> Learner:
    """Give a learner of complete label sets the cases that not all learners take.

    These are classes without training rows, and training rows that say nothing: all of
    one class, or all equal. Then the scores are the classes' frequencies.

    Args:
        scores: A learner of tasks with rows of all classes, two of them at least.
        names: What comes free within a configuration, as `scores` names it.
    """

    def predict(configuration: Configuration, task: Task) -> Path:
        task = _checked(task)
        present, dense = np.unique(task.labels, return_inverse=True)
        if len(present) == 1 or np.all(task.x == task.x[0]):
            constant = _frequencies(dense, len(task.x_test))
            return {name: _columns(constant, present, task.classes) for name in names}
        # Threads are limited here and not only by arguments: HistGradientBoosting and
        # BLAS have none.
        with threadpool_limits(limits=1):
            path = scores(configuration, task._replace(labels=dense, classes=len(present)))
        return {name: _columns(each, present, task.classes) for name, each in path.items()}

    return predict


def from_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Turn probabilities `(m, p)` into scores: of two classes the difference, `(m, 1)`."""
    probabilities = np.asarray(probabilities, "float64")
    if probabilities.shape[1] == 2:
        return probabilities[:, 1:] - probabilities[:, :1]
    return probabilities


def _frequencies(labels: np.ndarray, rows: int) -> np.ndarray:
    """Return scores of test rows that are all alike, as `_columns` takes them."""
    frequencies = np.bincount(labels) / len(labels)
    scores = np.tile(frequencies, (rows, 1))
    return np.zeros((rows, 1)) if len(frequencies) == 1 else from_probabilities(scores)


def _columns(scores: np.ndarray, present: np.ndarray, classes: int) -> np.ndarray:
    """Turn scores of the classes present into scores of all.

    Args:
        scores: Shape `(m, 1)` for one or two present classes, else `(m, p)`.
        present: The classes with training rows, ascending, shape `(p,)`.
        classes: How many there are in all.

    Returns:
        Shape `(m, 1)` for two classes, else `(m, classes)`; missing classes lie below
        the lowest score.
    """
    if classes == 2:
        return scores if len(present) == 2 else scores + (1.0 if present[0] == 1 else -1.0)
    if len(present) == 2:
        scores = np.hstack([-scores, scores])
    lowest = scores.min(initial=0.0) - 1.0
    columns = np.full((len(scores), classes), lowest)
    columns[:, present] = scores
    return columns


def _checked(task: Task) -> Task:
    """Return the task with rows in float64, or refuse it, naming what is wrong."""
    x, x_test = matrices(task.x, task.x_test)
    labels = checked_labels(task.labels, task.classes)
    if len(labels) != len(x):
        raise ValueError(
            "`labels` must be one a row of `x`. Received: "
            f"{len(labels)} labels, x of {len(x)} rows"
        )
    return task._replace(x=x, labels=labels, x_test=x_test)

"""Datasets of labels: which classes there are, and targets in place of labels."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_kare import _labels, _validation
from keras_kare._labels import Classes
from keras_kare.models.batches import is_dataset, read


def classes_in(dataset: Any, steps: int | None, task: str) -> Classes | None:
    """Find the classes of a dataset's labels, which takes a pass; `None` for numbers."""
    labels: list[np.ndarray] = []
    for _, y, _ in read(dataset, steps):
        y = _validation.check_target_rows("y", y, len(y))
        if _labels.are_numbers(y, task):
            return None
        if y.shape[1] > 1:
            return _labels.found("y", y, task)
        labels = [np.unique(np.concatenate([*labels, y[:, 0]]))]
    return _labels.found("y", labels[0][:, None], task) if labels else None


def encoded(dataset: Any, classes: Classes | None) -> Any:
    """Return a dataset, or a generator, whose targets stand for classes, for Keras.

    Arrays, which are encoded where they are gathered, are returned as they are.
    """
    if classes is not None and hasattr(dataset, "__next__"):
        return (_batch_encoded(batch, classes) for batch in dataset)
    if classes is None or not is_dataset(dataset):
        return dataset
    if isinstance(dataset, keras.utils.PyDataset):
        return EncodedBatches(dataset, classes)

    def stood_for(*batch: Any) -> Any:
        x, y, *weights = batch
        return (x, classes.targets_in_graph(y), *weights)

    return dataset.map(stood_for)


def _batch_encoded(batch: Any, classes: Classes) -> Any:
    x, y, *weights = batch
    y = _validation.check_target_rows("y", y, len(y))
    return (x, classes.targets("y", y), *weights)


class EncodedBatches(keras.utils.PyDataset):
    """Batches of another `PyDataset`, whose labels are made targets."""

    def __init__(self, dataset: keras.utils.PyDataset, classes: Classes):
        workers = (dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        super().__init__(*workers)
        self._dataset, self._classes = dataset, classes

    @property
    def num_batches(self) -> int | None:
        count: int | None = self._dataset.num_batches
        return count

    def __getitem__(self, index: int) -> Any:
        return _batch_encoded(self._dataset[index], self._classes)

    def on_epoch_begin(self) -> None:
        self._dataset.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self._dataset.on_epoch_end()

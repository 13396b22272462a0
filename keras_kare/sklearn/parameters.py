"""Parameters of the estimators, refused by name before any work."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from sklearn.utils import check_random_state

from keras_kare import _validation

DTYPES = ("float32", "float64")


def check_parameters(estimator: Any) -> None:
    """Refuse what `fit` cannot use.

    Raises:
        ValueError: That names the parameter.
    """
    _check_sizes(estimator.hidden_sizes)
    _check_activation(estimator.activation)
    _validation.check_whole("epochs", estimator.epochs, 0)
    _validation.check_whole("batch_size", estimator.batch_size, 2)
    _validation.check_whole("few_values", estimator.few_values, 0)
    _validation.check_whole("folds", estimator.folds, 2)
    _validation.check_whole("networks", estimator.networks, 1)
    _validation.check_whole("machines", estimator.machines, 1)
    _validation.check_positive("learning_rate", estimator.learning_rate)
    _validation.check_positive("time_budget", estimator.time_budget, None)
    for name in ("laplace", "standardize"):
        value = getattr(estimator, name)
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"`{name}` must be True or False. Received: {name}={value!r}")
    _check_centres(estimator.centres)
    if not isinstance(estimator.verbose, bool | np.bool_):
        _validation.check_whole("verbose", estimator.verbose, 0)
    _check_random_state(estimator.random_state)
    _validation.check_positive("kare_ridge", estimator.kare_ridge)
    _validation.check_positive("ridge", estimator.ridge, "auto")
    _validation.check_option("dtype", estimator.dtype, DTYPES)


def _check_centres(centres: Any) -> None:
    if centres is None or (isinstance(centres, str) and centres == "auto"):
        return
    if not _validation.is_whole(centres) or centres < 2:
        raise ValueError(
            '`centres` must be a whole number of at least 2, "auto" or None. '
            f"Received: centres={centres!r}"
        )


def _check_random_state(random_state: Any) -> None:
    try:
        check_random_state(random_state)
    except ValueError:
        raise ValueError(
            "`random_state` must be a whole number of at least 0, a "
            "`numpy.random.RandomState` or None. "
            f"Received: random_state={random_state!r}"
        ) from None


def _check_sizes(sizes: Any) -> None:
    listed = isinstance(sizes, list | tuple)
    if not listed or not all(_validation.is_whole(size) and size > 0 for size in sizes):
        raise ValueError(
            "`hidden_sizes` must be a tuple of whole numbers, the units of each hidden "
            f"layer. Received: hidden_sizes={sizes!r}"
        )


def _check_activation(activation: Any) -> None:
    known = isinstance(activation, str)
    if known:
        try:
            keras.activations.get(activation)
        except ValueError:
            known = False
    if not known:
        raise ValueError(
            '`activation` must be the name of a Keras activation, such as "gelu". '
            f"Received: activation={activation!r}"
        )

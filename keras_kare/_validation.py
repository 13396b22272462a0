"""Bad input, named before any long work."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _text
from keras_kare._arrays import plain


def check_option(name: str, value: Any, options: Sequence[str]) -> None:
    """Refuse a value that is none of the known strings."""
    if value not in options:
        known = ", ".join(repr(option) for option in options)
        raise ValueError(f"`{name}` must be one of {known}. Received: {name}={value!r}")


def is_number(value: Any) -> bool:
    """Tell whether a value is a real number; a boolean is none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Tell whether a value is a whole number, of Python or NumPy; a boolean is none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_whole(name: str, value: Any, least: int, optional: bool = False) -> None:
    """Refuse what is no whole number of at least `least` (or `None`, where allowed)."""
    if optional and value is None:
        return
    if not is_whole(value) or value < least:
        none = " or None" if optional else ""
        raise ValueError(
            f"`{name}` must be a whole number of at least {least}{none}. "
            f"Received: {name}={value!r}"
        )


def check_counts(**counts: Any) -> None:
    """Refuse numbers of steps or rows, by their names, that are neither None nor whole."""
    for name, value in counts.items():
        check_whole(name, value, 1, optional=True)


def check_positive(name: str, value: Any, *others: str | None) -> None:
    """Refuse what is neither a positive finite number nor one of the others, if any."""
    if (value is None or isinstance(value, str)) and value in others:
        return
    if not is_number(value) or not math.isfinite(value) or value <= 0:
        choices = "".join(f' or "{other}"' if other else " or None" for other in others)
        raise ValueError(
            f"`{name}` must be a positive finite number{choices}. "
            f"Received: {name}={value!r}"
        )


def check_at_least_zero(name: str, value: Any) -> None:
    """Refuse what is no finite number of at least 0."""
    if not (is_number(value) and 0.0 <= value < math.inf):
        raise ValueError(
            f"`{name}` must be a number of at least 0. Received: {name}={value!r}"
        )


def check_memory_limit(value: Any) -> None:
    """Refuse a limit that is no positive number of bytes."""
    if value is None:
        return
    if not is_whole(value) or value <= 0:
        raise ValueError(
            "`memory_limit` must be a positive number of bytes, as an int, or None for "
            f"half of what is free. Received: memory_limit={value!r}"
        )


def check_rows(name: str, x: Any, network: Any = None) -> Any:
    """Return inputs as tensors: finite numbers, or text, of the same number of rows each.

    Whether a network takes text, its kernel's `check_shapes` knows.

    Args:
        name: Of the argument.
        x: Rows, in any form that `plain` knows.
        network: What takes them; `None` where there is none.

    Returns:
        The same nested structure of `tf.Tensor`s.
    """
    if x is None:
        raise ValueError(f"`{name}` is missing. Received: {name}=None")
    x = plain(name, x, network)
    x = keras.tree.map_structure(lambda part: _tensor(name, part), x)
    parts = keras.tree.flatten(x)
    if not parts:
        raise ValueError(f"`{name}` is empty. Received: {name}={x!r}")
    for part in parts:
        if part.shape.rank == 0:
            raise ValueError(
                f"`{name}` must have rows: an array, or a list of arrays where a network "
                f"has several inputs. For a list of numbers pass `np.asarray({name})`. "
                "Received: a scalar"
            )
    counts = sorted({int(part.shape[0]) for part in parts})
    if len(counts) > 1:
        raise ValueError(
            f"All inputs in `{name}` must have the same number of rows. "
            f"Received: inputs of {' and '.join(map(str, counts))} rows"
        )
    if counts[0] == 0:
        raise ValueError(
            f"`{name}` has no rows. Received: {name} of shape {parts[0].shape}"
        )
    for part in parts:
        check_finite(name, part)
    return x


def check_target_rows(name: str, y: Any, rows: int) -> np.ndarray:
    """Return targets or labels as an array, `(n, c)`, of whatever type.

    Raises:
        ValueError: If `y` is missing, or has other rows than the inputs.
    """
    if y is None:
        raise ValueError(
            f"`{name}` is missing: kernels are trained and solved on targets. "
            f"Received: {name}=None"
        )
    y = np.asarray(y)
    if y.ndim == 0 or y.shape[0] != rows:
        raise ValueError(
            f"`{name}` must have one row for each row of the inputs. Received: "
            f"{name} of shape {y.shape}, inputs of {rows} rows"
        )
    y = y.reshape(rows, -1)
    if y.shape[1] == 0:
        raise ValueError(f"`{name}` has no columns. Received: {name} of shape {y.shape}")
    if y.dtype.kind == "O":  # as a data frame holds numbers among others
        plain = np.array(y.tolist())
        y = plain if plain.dtype.kind in "fiub" else _as_str(y)
    return y


def _as_str(y: np.ndarray) -> np.ndarray:
    """Return text of TensorFlow, which holds it as bytes, as `str`; the rest as it is."""
    flat = y.ravel().tolist()
    if not all(isinstance(label, bytes) for label in flat):
        return y
    try:
        return np.array([label.decode() for label in flat], object).reshape(y.shape)
    except UnicodeDecodeError:
        return y


def check_targets(name: str, y: Any, rows: int) -> np.ndarray:
    """Return targets as a float array of shape `(n, c)`.

    Raises:
        ValueError: If `y` is missing, not numeric, holds NaN or Inf, or has other rows than
            the inputs.
    """
    y = check_target_rows(name, y, rows)
    if y.dtype.kind not in "fiub":
        raise ValueError(
            f"`{name}` must hold numbers here. Encode class labels as targets, one column "
            f"a class, 1 for the row's class and -1 elsewhere. Received: {name} of dtype "
            f"{y.dtype}"
        )
    check_finite(name, y)
    return y if y.dtype.kind == "f" else y.astype(keras.config.floatx())


def check_finite(name: str, value: Any) -> None:
    """Refuse NaN and Inf in a floating array or tensor."""
    value = tf.convert_to_tensor(value)
    if not all_finite(value):
        raise ValueError(
            f"`{name}` holds NaN or Inf. Remove or impute those entries. Received: "
            f"{name} of shape {tuple(value.shape)}"
        )


def all_finite(value: tf.Tensor) -> bool:
    """Tell whether no entry is NaN or Inf, without an operation where it is at hand."""
    if not value.dtype.is_floating:
        return True
    if value.device.endswith("CPU:0"):
        return bool(np.all(np.isfinite(value.numpy())))
    return bool(tf.reduce_all(tf.math.is_finite(value)))


def limits(dtype: Any) -> np.finfo:
    """Return the limits of a floating type; bfloat16 has the range of float32."""
    name = keras.backend.standardize_dtype(dtype)
    return np.finfo("float32" if name == "bfloat16" else name)


def check_fits(name: str, y: np.ndarray) -> None:
    """Refuse targets that overflow, or vanish, in the type that models compute in.

    Args:
        name: Of the argument.
        y: Finite targets, `(n, c)`.
    """
    floatx = keras.config.floatx()
    largest = np.max(np.abs(y.astype("float64")), axis=0)
    bounds = limits(floatx)
    if np.all((largest <= bounds.max) & ((largest >= bounds.tiny) | (largest == 0.0))):
        return
    raise ValueError(
        f"`{name}` does not fit {floatx}, the type that models compute in: scale it to "
        'about one, or use `keras.config.set_floatx("float64")`. Received: columns whose '
        f"largest entries are from {largest.min():.3g} to {largest.max():.3g}"
    )


def check_squares(name: str, y: np.ndarray, dtype: Any) -> None:
    """Refuse targets whose squares overflow, or vanish, in the type of a loss.

    Args:
        name: Of the argument.
        y: Finite targets, `(n, c)`.
        dtype: The type.
    """
    largest, bounds = float(np.max(np.abs(y))), limits(dtype)
    if largest == 0.0:
        return
    # A loss is a small part of the mean of squares, and a gradient a part of that.
    least, most = bounds.tiny / bounds.eps, bounds.max / y.size
    if math.sqrt(least) <= largest <= math.sqrt(most):
        return
    raise ValueError(
        f"`{name}` has squares that {'vanish' if largest < 1.0 else 'overflow'} in "
        f"{keras.backend.standardize_dtype(dtype)}, the type of the loss: scale it to "
        'about one, or use `keras.config.set_floatx("float64")`. Received: '
        f"{name} whose largest entry is {largest:.3g}"
    )


def check_finite_weight(variable: keras.Variable) -> None:
    """Refuse NaN and Inf in a variable of the network."""
    value = tf.convert_to_tensor(variable.value)
    if not all_finite(value):
        raise ValueError(
            f"The network's weight `{variable.path}` holds NaN or Inf: its training has "
            "diverged, or it was set so. Train again with a smaller learning rate, or "
            "restore earlier weights."
        )


def check_weights(name: str, weights: Any, rows: int, positive: int = 2) -> np.ndarray:
    """Return how often rows count, as floats `(n,)`: finite, not negative, some positive.

    Args:
        name: Of the argument.
        weights: What was given.
        rows: `n`.
        positive: How many must be positive: 2, or 0 for a part of the rows.

    Raises:
        ValueError: Otherwise.
    """
    weights = np.asarray(weights)
    if weights.dtype.kind not in "fiub" or weights.size != rows:
        raise ValueError(
            f"`{name}` must be one number a row, how often the row counts. Received: "
            f"{name} of shape {weights.shape} and dtype {weights.dtype}, for {rows} rows"
        )
    weights = weights.reshape(rows).astype(keras.config.floatx())
    check_finite(name, weights)
    if weights.min() < 0.0 or np.count_nonzero(weights) < positive:
        enough = ", and be positive for at least two rows" if positive else ""
        raise ValueError(
            f"`{name}` must not be negative{enough}. "
            f"Received: {np.sum(weights < 0.0)} negative and {np.sum(weights > 0.0)} "
            "positive weights"
        )
    return weights


def check_counts_a_row(name: str, weights: np.ndarray | None) -> None:
    """Refuse weights under which no machine has KARE: all rows count for one, or less."""
    if weights is not None and (total := np.sum(weights, dtype="float64")) <= 1.0 + 1e-5:
        raise ValueError(
            f"`{name}` says how often each row counts, and must sum to more than one row. "
            "Weights that average to one leave KARE as it is without. Received: "
            f"{name} with a sum of {total:.3g}"
        )


def _tensor(name: str, part: Any) -> tf.Tensor:
    if isinstance(part, tf.data.Dataset):
        raise ValueError(
            f"`{name}` must be arrays here; only `fit`, `fit_head`, `predict` and "
            f"`evaluate` read datasets. Received: {name} of type {type(part).__name__}"
        )
    if not tf.is_tensor(part):
        part = np.asarray(part)
        if _text.is_text(part):
            return _text.as_tensor(name, part)
        if part.dtype.kind not in "fiub":
            refuse_text(name, part.dtype)
        if part.dtype.kind == "f":
            part = _narrowed(name, part)
    return tf.convert_to_tensor(part)


def refuse_text(name: str, dtype: Any) -> None:
    """Refuse what are no numbers where numbers are wanted."""
    raise ValueError(
        f"`{name}` must hold numbers, unless the network begins with a layer that takes "
        "text (`keras.layers.TextVectorization`, or `StringLookup` for categories): add "
        f"one, or encode text first. Received: {name} of dtype {dtype}"
    )


def _narrowed(name: str, part: np.ndarray) -> np.ndarray:
    """Return a part of the inputs in the type that models compute in."""
    floatx = keras.config.floatx()
    if part.dtype == floatx:
        return part
    with np.errstate(over="ignore"):
        narrow = part.astype(floatx)
    if not np.all(np.isfinite(narrow)) and np.all(np.isfinite(part)):
        raise ValueError(
            f"`{name}` overflows {floatx}, the type that models compute in: scale it, or "
            'use `keras.config.set_floatx("float64")`. Received: '
            f"{name} with an entry of size {np.max(np.abs(part)):.3g}"
        )
    return narrow


def check_positive_scalar(name: str, value: Any) -> None:
    """Refuse what `check_positive` does, a tensor too; let symbolic ones through."""
    if tf.is_tensor(value) or isinstance(value, tf.Variable | np.ndarray):
        if not tf.executing_eagerly() or tf.size(value) != 1:
            return
        value = float(tf.reshape(value, ()))
    check_positive(name, value)

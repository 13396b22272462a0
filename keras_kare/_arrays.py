"""The forms in which rows come, as arrays: lists, data frames, variables, objects."""

from __future__ import annotations

import numbers
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare._text import gathered


def plain(name: str, x: Any, network: Any = None) -> Any:
    """Return rows as arrays, nested as a network takes them.

    A list of lists of numbers is one array. Where the network has a single input, so is a
    list of its rows, and a list or a dictionary of nothing but that input is the input. A
    last axis of length one is there or not, and integers are of the type, as the network's
    inputs have it, as in Keras.

    Args:
        name: Of the argument.
        x: As it was passed.
        network: The network; `None` where there is none.

    Raises:
        ValueError: For sparse and ragged rows, and lists of different lengths.
    """
    x, inputs = gathered(x), getattr(network, "inputs", None) or []
    if isinstance(x, dict | list | tuple) and x:
        if len(inputs) == 1:
            x = _of_one_input(name, x, network)
        elif type(x) in (list, tuple) and len(x) == len(inputs):
            x = type(x)(plain(name, part) for part in x)
        elif isinstance(x, dict):
            x = {key: plain(f"{name}[{key!r}]", part) for key, part in x.items()}
        elif _of_scalars(x):
            x = _stacked(name, x)
    x = keras.tree.map_structure(lambda part: one_array(name, part), x)
    return _as_declared(x, inputs)


def plain_targets(name: str, y: Any, rows: int | None = None) -> Any:
    """Return targets as one array; those of one output in a list are that output's.

    Args:
        name: Of the argument.
        y: As it was passed.
        rows: How many there are; `None` where nobody knows.

    Raises:
        ValueError: For targets of several outputs.
    """
    parts = list(y.values()) if isinstance(y, dict) else y
    if not isinstance(parts, list | tuple) or not parts or _of_scalars(parts):
        return one_array(name, y)
    several = isinstance(y, dict) or all(np.ndim(part) > 0 for part in parts)
    if len(parts) == 1 and several and (isinstance(y, dict) or hasattr(parts[0], "shape")):
        return one_array(name, parts[0])
    counts = {len(part) for part in parts if np.ndim(part)}
    if isinstance(y, dict) or (several and len(parts) != rows and counts == {rows}):
        raise ValueError(
            f"`{name}` must be one array, `(n, c)`: there is one kernel, of one output. "
            "Put targets of several outputs side by side as columns, with "
            f"`np.column_stack(...)`. Received: {name} of type {type(y).__name__}, with "
            f"{len(parts)} arrays"
        )
    return y


def one_array(name: str, part: Any) -> Any:
    """Return what stands for an array as one; what is none, and text, as it is."""
    if isinstance(part, np.ma.MaskedArray) and np.any(part.mask):
        raise ValueError(
            f"`{name}` holds masked entries: impute them, or pass `{name}.filled(...)`. "
            f"Received: {name} with {np.sum(part.mask)} masked entries"
        )
    if hasattr(part, "__next__") or isinstance(part, keras.utils.PyDataset):
        raise ValueError(
            f"`{name}` must be arrays here; only `predict` and `evaluate` read generators, "
            "and they, `fit` and `fit_head` read datasets. "
            f"Received: {name} of type {type(part).__name__}"
        )
    if isinstance(part, np.ndarray):
        return _numbers(part) if part.dtype.kind == "O" else part
    if isinstance(part, tf.Variable | keras.Variable):
        return tf.convert_to_tensor(part)
    if (dense := _made_dense_by(part)) is not None:
        raise ValueError(
            f"`{name}` must be dense: pass `{dense.format(name=name)}`. "
            f"Received: {name} of type {type(part).__name__}"
        )
    if hasattr(part, "detach"):  # of PyTorch
        return part.detach().cpu().numpy()
    if hasattr(part, "to_numpy"):  # of pandas, and others like it
        return one_array(name, np.asarray(part.to_numpy()))
    return part


def _made_dense_by(part: Any) -> str | None:
    """Return what makes an array dense, if it is not."""
    if isinstance(part, tf.RaggedTensor):
        return "{name}.to_tensor()"
    if isinstance(part, tf.SparseTensor):
        return "tf.sparse.to_dense({name})"
    sparse = hasattr(part, "toarray") and hasattr(part, "nnz")  # of SciPy
    return "{name}.toarray()" if sparse else None


def _of_one_input(name: str, x: Any, network: Any) -> Any:
    """Return what a network with a single input takes."""
    wanted = network.inputs[0]
    one = next(iter(x.values() if isinstance(x, dict) else x))
    bare = isinstance(network, keras.Sequential) or isinstance(
        network.input, keras.KerasTensor
    )
    if isinstance(x, dict):
        return one if bare and list(x) == [wanted.name] else x
    whole = hasattr(one, "shape") and len(one.shape) >= len(wanted.shape)
    if whole:
        return one if bare and len(x) == 1 else x
    return _stacked(name, x)


def _as_declared(x: Any, inputs: Any) -> Any:
    """Give rows the axes, and integers the type, that a network's inputs have."""
    if isinstance(x, dict):
        known = {tensor.name: [tensor] for tensor in inputs}
        return {key: _as_declared(part, known.get(key, [])) for key, part in x.items()}
    if isinstance(x, list | tuple):
        if len(x) != len(inputs):
            return x
        pairs = zip(x, inputs, strict=True)
        return type(x)(_as_declared(part, [own]) for part, own in pairs)
    if len(inputs) != 1 or not isinstance(x, np.ndarray | tf.Tensor):
        return x
    shape, wanted, dtype = x.shape, inputs[0].shape, tf.as_dtype(inputs[0].dtype)
    if len(shape) == len(wanted) - 1 and wanted[-1] == 1:
        x = x[..., None]
    elif len(shape) == len(wanted) + 1 and shape[-1] == 1:
        x = x[..., 0]
    of_integers = dtype.is_integer and (tf.is_tensor(x) or x.dtype.kind in "iu")
    return tf.cast(x, dtype) if of_integers and tf.as_dtype(x.dtype).is_integer else x


def _of_scalars(x: Any) -> bool:
    return not any(getattr(leaf, "shape", ()) != () for leaf in keras.tree.flatten(x))


def _stacked(name: str, x: Any) -> np.ndarray:
    try:
        rows = np.asarray(keras.tree.map_structure(_of_tensor, x))
    except ValueError as error:
        raise ValueError(
            f"`{name}` must have rows of one shape. Received: {name} of type "
            f"{type(x).__name__}, whose {len(x)} parts differ in shape"
        ) from error
    return _numbers(rows) if rows.dtype.kind == "O" else rows


def _of_tensor(part: Any) -> Any:
    return np.asarray(one_array("x", part)) if hasattr(part, "shape") else part


def _numbers(values: np.ndarray) -> np.ndarray:
    """Return objects that all are numbers as numbers, missing ones as NaN."""
    flat = values.ravel().tolist()
    if any(isinstance(value, str | bytes) for value in flat):
        return values
    flat = [np.nan if type(value).__name__ == "NAType" else value for value in flat]
    try:
        found = np.array(flat)
        if found.dtype.kind == "O" and any(isinstance(v, numbers.Real) for v in flat):
            found = np.array(flat, "float64")
    except (TypeError, ValueError):
        return values
    numeric = found.dtype.kind in "iufb" and found.size == values.size
    return found.reshape(values.shape) if numeric else values

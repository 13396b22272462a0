"""Rows that a plan is tried on: made up, so that no plan depends on a user's rows."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare.kernels.structured.untouched import walk

ROWS = 13
"""How many rows a plan is made for: a number that other axes seldom have."""

_SCALES = (0.1, 1.0, 1.0, 10.0)
"""Sizes of the numbers in a row, in turn: gates that few rows open are met."""

_PADDED = slice(2, None, 4)
"""Rows whose last positions are padding."""

_FEW = 3
"""Whole numbers below this stand for tokens of a network without a table."""


_WORDS = ("kernel", "gram", "ridge", "Zebra", "42")
"""Words for networks of text, beside those that their layers know."""

_LENGTH = 4
"""Positions that stand for a length that is not known yet."""


def described(x: Any) -> Any:
    """Describe `ROWS` rows of inputs by shapes and types; all axes have a length."""

    def spec(t: Any) -> tf.TensorSpec:
        shape = [_LENGTH if d is None else d for d in t.shape[1:]]
        return tf.TensorSpec([ROWS, *shape], t.dtype)

    return keras.tree.map_structure(spec, x)


def synthetic_rows(specs: Any, network: keras.Model, seed: int) -> Any:
    """Make `ROWS` different rows for a network, which depend on nothing but the seed.

    Numbers are normal, of several sizes; whole numbers are entries of the network's
    smallest table; text is of words that the network's layers know, and of others.
    """
    rng = np.random.default_rng(seed)
    # Where sentences are padded to the longest, and that matters, it shows: the longest
    # of the first rows is not beside those of the others that are put beside them.
    longest = ROWS - 1 if seed % 2 else 0
    most = min(_tables(network), default=_FEW)
    padding = [
        layer.mask_value
        for layer in walk(network)
        if isinstance(layer, keras.layers.Masking)
    ]

    def rows(spec: tf.TensorSpec) -> tf.Tensor:
        shape = tuple(spec.shape)
        if spec.dtype == tf.string:
            return tf.constant(_text_rows(network, shape, rng, longest), tf.string)
        if spec.dtype.is_floating:
            scale = np.resize(_SCALES, ROWS).reshape(-1, *[1] * (len(shape) - 1))
            made: np.ndarray = scale * rng.normal(size=shape)
        else:
            made = rng.integers(0, 2 if spec.dtype == tf.bool else most, size=shape)
        steps = spec.dtype != tf.bool and len(shape) > (2 if padding else 1)
        if steps and shape[1] > 1 and (padding or not spec.dtype.is_floating):
            made[_PADDED, -(shape[1] // 2) :] = padding[0] if padding else 0
        return tf.constant(made.astype(spec.dtype.as_numpy_dtype))

    return keras.tree.map_structure(rows, specs)


def _tables(network: keras.Model) -> list[int]:
    """Return how many whole numbers each layer knows that takes some."""
    return [
        layer.input_dim if isinstance(layer, keras.layers.Embedding) else layer.num_tokens
        for layer in walk(network)
        if isinstance(layer, keras.layers.Embedding)
        or (isinstance(layer, keras.layers.CategoryEncoding) and layer.num_tokens)
    ]


def _text_rows(
    network: keras.Model, shape: tuple[int, ...], rng: np.random.Generator, longest: int
) -> np.ndarray:
    """Make entries of one word, or of several where a layer splits text; none is empty.

    The row of number `longest` has the longest.
    """
    layers = walk(network)
    lookups = [a for a in layers if isinstance(a, keras.layers.StringLookup)]
    known = [
        str(word)
        for layer in lookups
        for word in layer.get_vocabulary(include_special_tokens=False)
        if word
    ]
    strict = any(layer.num_oov_indices == 0 for layer in lookups)
    words = known if strict and known else [*known, *_WORDS]
    splits = any(isinstance(a, keras.layers.TextVectorization) for a in layers)
    made = np.empty(shape, object)
    for place in np.ndindex(shape):
        # A word by itself is also an entry of layers that look up whole entries.
        count = int(rng.integers(1, _LENGTH)) if splits and place[0] % 3 else 1
        if splits and place[0] == longest:
            count = 3 * _LENGTH
        made[place] = " ".join(rng.choice(words, count))
    return made


def spread_rows(x: Any) -> Any:
    """Pick `ROWS` of a user's rows, evenly spread; `None` where `x` is symbolic."""
    parts = keras.tree.flatten(x)
    if any(map(tf.is_symbolic_tensor, parts)):
        return None
    count = int(parts[0].shape[0])
    picked = np.linspace(0, count - 1, ROWS).round().astype(int)
    return keras.tree.map_structure(lambda t: tf.constant(np.asarray(t)[picked]), x)

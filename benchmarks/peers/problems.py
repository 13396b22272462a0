"""The networks that are compared: shapes, weights and data, in numpy only.

Weights are in the layout of Keras, by layer: a contender transposes them where its
framework wants that. All networks have one output, biases everywhere, and no
normalisation. GELU is the exact one, `x Φ(x)`.

    mlp        Dense(64) GELU twice -> Dense(1), on 576 features
    mlp-deep   Dense(128) GELU four times -> Dense(1), on 576 features
    cnn        Conv(3x3, 32, same) ReLU three times -> mean -> Dense(1), on 28x28x1
    resnet     x + Conv(ReLU(Conv(x))), 3x3, three times -> mean -> Dense(1), on 16x16x16
    text       Embedding(5000, 64) -> x + attention(x), 2 heads of 32 -> mean -> Dense(1),
               on 32 tokens
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

RIDGE = 0.1
LEARNING_RATE = 1e-3

Weights = dict[str, list[np.ndarray]]


class Case(NamedTuple):
    """One network: its family, input shape, and how many rows are the default."""

    family: str
    input_shape: tuple[int, ...]
    widths: tuple[int, ...]
    rows: int
    told: str


VOCABULARY = 5000
HEADS, KEY_DIM = 2, 32

CASES = {
    "mlp": Case("mlp", (576,), (64, 64), 1000, "576-64-64-1, GELU"),
    "mlp-deep": Case("mlp", (576,), (128,) * 4, 1000, "576-128-128-128-128-1, GELU"),
    "cnn": Case(
        "cnn", (28, 28, 1), (32, 32, 32), 256, "28x28x1, three 3x3 convolutions of 32, ReLU"
    ),
    "resnet": Case(
        "resnet", (16, 16, 16), (16, 16, 16), 128, "16x16x16, three residual blocks, ReLU"
    ),
    "text": Case(
        "text",
        (32,),
        (64,),
        128,
        f"32 tokens, Embedding({VOCABULARY}, 64), self-attention of {HEADS} heads",
    ),
}


def data(case: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows `(n, ...)` and targets `(n, 1)` of -1 and 1."""
    rng = np.random.default_rng(0)
    shape = (n, *CASES[case].input_shape)
    if CASES[case].family == "text":
        x = rng.integers(0, VOCABULARY, size=shape).astype("int32")
    else:
        x = rng.normal(size=shape).astype("float32")
    return x, rng.choice(np.float32([-1, 1]), size=(n, 1))


def weights(case: str) -> Weights:
    """Arrays of each layer: kernel and bias; of attention, for each of its products."""
    family, shape, widths = CASES[case][:3]
    rng = np.random.default_rng(1)
    layers: Weights = {}
    if family == "mlp":
        for i, (inner, width) in enumerate(zip((*shape, *widths), widths, strict=False)):
            layers[f"dense_{i}"] = _linear(rng, (inner, width), inner)
    elif family == "cnn":
        channels = (shape[-1], *widths)
        for i, (inner, width) in enumerate(zip(channels, widths, strict=False)):
            layers[f"conv_{i}"] = _linear(rng, (3, 3, inner, width), 9 * inner)
    elif family == "resnet":
        for i, width in enumerate(widths):
            for part in "ab":
                name = f"conv_{i}{part}"
                layers[name] = _linear(rng, (3, 3, width, width), 9 * width)
    else:
        width = widths[0]
        layers["embedding"] = [rng.normal(size=(VOCABULARY, width)).astype("float32")]
        into, out = (width, HEADS, KEY_DIM), (HEADS, KEY_DIM, width)
        projections = [_linear(rng, into, width, (HEADS, KEY_DIM)) for _ in range(3)]
        projections.append(_linear(rng, out, HEADS * KEY_DIM))
        layers["attention"] = [array for pair in projections for array in pair]
    layers["output"] = _linear(rng, (widths[-1], 1), widths[-1])
    return layers


def count(case: str) -> int:
    """Number of parameters."""
    return sum(array.size for arrays in weights(case).values() for array in arrays)


def _linear(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    inputs: int,
    bias_shape: tuple[int, ...] | None = None,
) -> list[np.ndarray]:
    kernel = rng.normal(size=shape) / math.sqrt(inputs)
    bias = 0.1 * rng.normal(size=bias_shape or shape[-1:])
    return [kernel.astype("float32"), bias.astype("float32")]

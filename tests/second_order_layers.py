"""Layers whose second derivatives are measured, by what they are made with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from keras import layers, ops
from second_order_cases import (
    CHANNELS_FIRST,
    IMAGE,
    REAL,
    SEQUENCE,
    VIDEO,
    VOLUME,
    Case,
    single,
)


class Called:
    """A layer as kernels call it, with noise on its weights."""

    def __init__(self, layer: Any, arguments: Callable[[Any], Any], x: np.ndarray):
        self.layer, self.arguments = layer, arguments
        self(tf.constant(x))
        rng = np.random.default_rng(11)
        self.trainable_variables = layer.trainable_variables
        for v in self.trainable_variables:
            v.assign(v + 0.3 * rng.normal(size=v.shape))

    def __call__(self, x: Any) -> Any:
        return self.layer(self.arguments(x), training=False)


def layer(
    x: np.ndarray,
    name: str,
    *args: Any,
    arguments: Callable[[Any], Any] = lambda x: x,
    case: Any = Case,
    wrapped: str | None = None,
    **kwargs: Any,
) -> dict[str, Case]:
    """One layer, by its class and what it is made with; none where Keras lacks it."""
    kind = getattr(layers, name, None)
    if kind is None or (wrapped and not hasattr(layers, wrapped)):
        return {}

    def make() -> Called:
        inner = [getattr(layers, wrapped)(*args, **kwargs)] if wrapped else []
        made = kind(*inner) if wrapped else kind(*args, **kwargs)
        return Called(made, arguments, x)

    given = [str(a) for a in args] + [f"{k}={v}" for k, v in kwargs.items()]
    title = " ".join([name, *([wrapped] if wrapped else []), *given])
    return {title: case(make, x)}


def many(x: np.ndarray, names: str, *args: Any, **kwargs: Any) -> dict[str, Case]:
    found: dict[str, Case] = {}
    for name in names.split():
        found |= layer(x, name, *args, **kwargs)
    return found


def _twice(x: Any) -> Any:
    return [x, ops.tanh(ops.flip(x, 1))]


def _thrice(x: Any) -> Any:
    return [x, ops.tanh(ops.flip(x, 1)), x * x]


_NAMES = ("nearest", "bilinear", "bicubic", "lanczos3", "lanczos5", "area")

RESIZING: dict[str, Case] = {}
for _name in _NAMES:
    _kind = Case if _name == "nearest" else single
    RESIZING |= layer(IMAGE, "UpSampling2D", (2, 3), interpolation=_name, case=_kind)
    RESIZING |= layer(IMAGE, "Resizing", 3, 9, interpolation=_name, case=_kind)
    RESIZING |= layer(
        IMAGE, "Resizing", 7, 4, interpolation=_name, antialias=True, case=_kind
    )
    for _ratio in ("crop_to_aspect_ratio", "pad_to_aspect_ratio"):
        _options = {"interpolation": _name, _ratio: True, "case": _kind}
        RESIZING |= layer(IMAGE, "Resizing", 7, 4, **_options)
    _options = {"interpolation": _name, "data_format": "channels_first", "case": _kind}
    RESIZING |= layer(CHANNELS_FIRST, "UpSampling2D", 2, **_options)
    RESIZING |= layer(CHANNELS_FIRST, "Resizing", 7, 4, **_options)

LAYERS = (
    RESIZING
    | layer(REAL, "Dense", 3, activation="tanh")
    | layer(REAL, "Embedding", 5, 3, arguments=lambda x: np.array([0, 1, 4]))
    | layer(SEQUENCE, "EinsumDense", "abc,cd->abd", (5, 3), bias_axes="d")
    | layer(SEQUENCE, "EinsumDense", "abc,bcd->abd", (5, 3))
    | layer(REAL, "ReversibleEmbedding", 5, 4, arguments=lambda x: np.array([0, 4]))
    | many(SEQUENCE, "Conv1D SeparableConv1D", 3, 2, padding="same")
    | layer(SEQUENCE, "Conv1D", 3, 2, padding="causal", dilation_rate=2)
    | many(SEQUENCE, "Conv1DTranspose", 3, 2, strides=2)
    | layer(SEQUENCE, "DepthwiseConv1D", 2)
    | many(IMAGE, "Conv2D SeparableConv2D Conv2DTranspose", 3, 2, strides=2)
    | layer(IMAGE, "Conv2D", 3, 2, groups=3)
    | layer(IMAGE, "Conv2D", 3, 2, dilation_rate=2, padding="same")
    | layer(IMAGE, "DepthwiseConv2D", 2, depth_multiplier=2)
    | many(VOLUME, "Conv3D Conv3DTranspose", 3, 2)
    | many(SEQUENCE, "SimpleRNN GRU LSTM", 3)
    | many(SEQUENCE, "GRU LSTM", 3, return_sequences=True, go_backwards=True)
    | layer(SEQUENCE, "GRU", 3, reset_after=False)
    | many(SEQUENCE, "SimpleRNN GRU LSTM", 3, unroll=True)
    | layer(SEQUENCE, "RNN", 3, wrapped="LSTMCell")
    | layer(SEQUENCE, "Bidirectional", 3, wrapped="GRU")
    | layer(SEQUENCE, "TimeDistributed", 3, wrapped="Dense")
    | layer(IMAGE, "ConvLSTM1D", 2, 2)
    | layer(VIDEO, "ConvLSTM2D", 2, 2)
    | many(SEQUENCE, "Attention AdditiveAttention", arguments=_thrice)
    | layer(SEQUENCE, "Attention", arguments=_twice, use_scale=True)
    | layer(SEQUENCE, "Attention", arguments=_twice, score_mode="concat")
    | many(SEQUENCE, "BatchNormalization LayerNormalization UnitNormalization")
    | many(SEQUENCE, "RMSNormalization")
    | layer(SEQUENCE, "LayerNormalization", axis=(1, 2))
    | layer(SEQUENCE, "LayerNormalization", rms_scaling=True)
    | layer(SEQUENCE, "GroupNormalization", 2)
    | layer(IMAGE, "GroupNormalization", -1)
    | layer(IMAGE, "BatchNormalization", axis=1)
    | layer(REAL, "SpectralNormalization", 3, wrapped="Dense")
    | layer(REAL, "Normalization", mean=0.3, variance=2.0)
    | many(REAL, "ELU LeakyReLU PReLU ReLU Softmax Identity Flatten Masking")
    | layer(REAL, "ReLU", max_value=1.0, negative_slope=0.1, threshold=0.2)
    | layer(REAL, "Activation", "gelu")
    | many(REAL, "ActivityRegularization Dropout GaussianDropout GaussianNoise", 0.1)
    | many(REAL, "AlphaDropout", 0.1)
    | layer(SEQUENCE, "SpatialDropout1D", 0.1)
    | layer(IMAGE, "SpatialDropout2D", 0.1)
    | layer(VOLUME, "SpatialDropout3D", 0.1)
    | many(
        REAL,
        "Add Average Concatenate Maximum Minimum Multiply Subtract",
        arguments=_twice,
    )
    | layer(REAL, "Dot", 1, arguments=_twice)
    | layer(REAL, "Dot", 1, normalize=True, arguments=_twice)
    | layer(REAL, "RepeatVector", 2)
    | layer(SEQUENCE, "Permute", (2, 1))
    | layer(SEQUENCE, "Reshape", (4, 5))
    | layer(IMAGE, "Rescaling", 0.5, offset=1.0)
    | many(SEQUENCE, "UpSampling1D ZeroPadding1D Cropping1D")
    | many(IMAGE, "ZeroPadding2D Cropping2D")
    | many(VOLUME, "UpSampling3D ZeroPadding3D Cropping3D")
    | many(SEQUENCE, "AveragePooling1D MaxPooling1D", 2)
    | many(SEQUENCE, "GlobalAveragePooling1D GlobalMaxPooling1D")
    | many(IMAGE, "AveragePooling2D MaxPooling2D", 2)
    | many(IMAGE, "GlobalAveragePooling2D GlobalMaxPooling2D")
    | many(VOLUME, "AveragePooling3D MaxPooling3D", 2, dtype="float32", case=single)
    | many(VOLUME, "GlobalAveragePooling3D GlobalMaxPooling3D")
    | many(IMAGE, "AveragePooling2D MaxPooling2D", 3, strides=2, padding="same")
    | many(SEQUENCE, "AdaptiveAveragePooling1D AdaptiveMaxPooling1D", 2)
    | many(IMAGE, "AdaptiveAveragePooling2D AdaptiveMaxPooling2D", 2)
    | many(
        VOLUME,
        "AdaptiveAveragePooling3D AdaptiveMaxPooling3D",
        3,
        dtype="float32",
        case=single,
    )
    | layer(IMAGE, "CenterCrop", 3, 3)
    | layer(IMAGE, "CenterCrop", 8, 9, case=single)
    | layer(IMAGE, "RandomCrop", 3, 3)
    | many(IMAGE, "RandomFlip")
    | many(IMAGE, "RandomZoom RandomRotation RandomShear", 0.1)
    | layer(
        SEQUENCE,
        "MelSpectrogram",
        8,
        4,
        num_mel_bins=3,
        min_freq=0.0,
        sampling_rate=80,
        dtype="float32",
        arguments=lambda x: ops.reshape(x, (2, 20)),
        case=single,
    )
    | layer(
        SEQUENCE,
        "STFTSpectrogram",
        frame_length=8,
        frame_step=4,
        fft_length=8,
        arguments=lambda x: ops.reshape(x, (2, 20, 1)),
    )
)


class _Self(layers.Layer):
    """Attention of a sequence to itself."""

    def __init__(self, inner: Any, **options: Any):
        super().__init__()
        self.inner, self.options = inner, options

    def call(self, x: Any) -> Any:
        return self.inner(x, x, **self.options)


ATTENTION = {
    "MultiHeadAttention": Case(
        lambda: Called(_Self(layers.MultiHeadAttention(2, 3)), lambda x: x, SEQUENCE),
        SEQUENCE,
    ),
    "MultiHeadAttention causal": Case(
        lambda: Called(
            _Self(layers.MultiHeadAttention(2, 3), use_causal_mask=True),
            lambda x: x,
            SEQUENCE,
        ),
        SEQUENCE,
    ),
    "GroupQueryAttention": Case(
        lambda: Called(_Self(layers.GroupQueryAttention(2, 4, 2)), lambda x: x, SEQUENCE),
        SEQUENCE,
    ),
}
LAYERS |= ATTENTION

REFUSED_LAYERS = {"CenterCrop 8 9": "ResizeBilinearGrad"}
"""Those that TensorFlow cannot differentiate, with the operation that is to blame."""

"""Activations and operations whose second derivatives are measured.

A case is a function of one tensor and the tensor. What Keras adds later is one line
each. `REFUSED` says what TensorFlow cannot differentiate twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import activations, ops

_rng = np.random.default_rng(7)
REAL = _rng.normal(size=(3, 4))
POSITIVE = _rng.uniform(0.5, 2.0, size=(3, 4))
UNIT = _rng.uniform(0.1, 0.8, size=(3, 4))
ABOVE = _rng.uniform(1.2, 3.0, size=(3, 4))
MATRICES = _rng.normal(size=(2, 3, 3))
TALL = _rng.normal(size=(2, 4, 3))
SEQUENCE = _rng.normal(size=(2, 5, 4))
IMAGE = _rng.uniform(0.1, 0.9, size=(2, 5, 6, 3))
CHANNELS_FIRST = IMAGE.transpose(0, 3, 1, 2).copy()
VOLUME = _rng.normal(size=(2, 4, 4, 4, 2))
VIDEO = _rng.normal(size=(2, 3, 4, 4, 2))
SHARES = UNIT / UNIT.sum(1, keepdims=True)
OTHER = _rng.normal(size=(3, 4))
AXES = tuple("abcde")


@dataclass(frozen=True)
class Case:
    """What is differentiated twice.

    Attributes:
        make: Returns a function of one tensor; called in float64.
        x: The tensor.
        step: Of finite differences: large where there is single precision inside.
        tolerance: Of their relative error.
    """

    make: Callable[[], Callable[[Any], Any]]
    x: np.ndarray
    step: float = 1e-4
    tolerance: float = 1e-6


single = partial(Case, step=2e-2, tolerance=1e-3)


def at(x: np.ndarray, **functions: Callable[[Any], Any]) -> dict[str, Case]:
    """Operations at one tensor, by name."""
    return {name: Case(lambda f=f: f, x) for name, f in functions.items()}


def named(module: Any, x: np.ndarray, names: str) -> dict[str, Case]:
    """Functions of a module; those that this version of Keras lacks are left out."""
    found = {name: getattr(module, name, None) for name in names.split()}
    return at(x, **{name: f for name, f in found.items() if f is not None})


ACTIVATIONS = named(
    activations,
    REAL,
    "celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_tanh "
    "leaky_relu linear log_sigmoid log_softmax mish relu relu6 selu sigmoid silu "
    "soft_shrink softmax softplus softsign sparse_plus sparse_sigmoid sparsemax "
    "squareplus tanh tanh_shrink",
) | at(
    REAL,
    threshold=lambda x: activations.threshold(x, 0.1, 0.2),
    gelu_approximate=lambda x: activations.gelu(x, approximate=True),
    relu_leaky=lambda x: activations.relu(x, 0.2, max_value=1.0, threshold=0.1),
)


def _spd(x: Any) -> Any:
    """Symmetric, positive definite."""
    return ops.matmul(x, ops.transpose(x, (0, 2, 1))) + ops.eye(3, dtype=x.dtype)


def _sides(f: Callable[[Any, Any], Any]) -> dict[str, Case]:
    """A function of two tensors, by either and by both."""
    return at(
        ABOVE,
        left=lambda x: f(x, OTHER),
        right=lambda x: f(OTHER, x),
        both=lambda x: f(x, ops.flip(x, 0)),
    )


def _pieces(n: int, axis: int) -> Callable[[Any], Any]:
    return lambda x: ops.split(x, n, axis)


ELEMENTWISE = (
    named(
        ops,
        REAL,
        "abs arcsinh arctan ceil conj copy cos cosh deg2rad erf erfc exp exp2 expm1 fabs "
        "floor i0 imag negative rad2deg real round sign sin sinc sinh square tan tanh "
        "trunc nan_to_num angle",
    )
    | named(
        ops,
        POSITIVE,
        "cbrt log log10 log1p log2 reciprocal rsqrt sqrt",
    )
    | named(ops, UNIT, "arccos arcsin arctanh erfinv")
    | named(ops, ABOVE, "arccosh")
    | {
        f"{name} {side}": case
        for name in (
            "add subtract multiply divide true_divide divide_no_nan maximum minimum fmax "
            "fmin hypot logaddexp logaddexp2 arctan2 floor_divide mod fmod nextafter"
        ).split()
        if hasattr(ops, name)
        for side, case in _sides(getattr(ops, name)).items()
    }
    | at(
        POSITIVE,
        power=lambda x: ops.power(x, ops.flip(x, 1)),
        power_of=lambda x: ops.power(x, 2.5),
        xlogy=lambda x: tf.math.xlogy(x, ops.flip(x, 0)),
        xdivy=lambda x: tf.math.xdivy(x, ops.flip(x, 0)),
        xlog1py=lambda x: tf.math.xlog1py(x, ops.flip(x, 0)),
        lgamma=tf.math.lgamma,
        digamma=tf.math.digamma,
        lbeta=tf.math.lbeta,
        igamma=lambda x: tf.math.igamma(x, ops.flip(x, 0)),
        igamma_x=lambda x: tf.math.igamma(POSITIVE[::-1].copy(), x),
        igammac=lambda x: tf.math.igammac(x, ops.flip(x, 0)),
        zeta=lambda x: tf.math.zeta(x + 1.5, ops.flip(x, 0)),
        polygamma=lambda x: tf.math.polygamma(tf.ones_like(x), x),
        bessel_i0=tf.math.bessel_i0,
        bessel_i0e=tf.math.bessel_i0e,
        bessel_i1=tf.math.bessel_i1,
        bessel_i1e=tf.math.bessel_i1e,
        bessel_j0=tf.math.special.bessel_j0,
        bessel_j1=tf.math.special.bessel_j1,
        bessel_k0=tf.math.special.bessel_k0,
        bessel_k1=tf.math.special.bessel_k1,
        bessel_k0e=tf.math.special.bessel_k0e,
        bessel_y0=tf.math.special.bessel_y0,
        dawsn=tf.math.special.dawsn,
        expint=tf.math.special.expint,
        fresnel_sin=tf.math.special.fresnel_sin,
        fresnel_cos=tf.math.special.fresnel_cos,
        spence=tf.math.special.spence,
    )
    | at(
        UNIT,
        ndtri=tf.math.ndtri,
        betainc=lambda x: tf.math.betainc(x + 1.0, 2.0 - x, x),
        betainc_x=lambda x: tf.math.betainc(POSITIVE, ABOVE, x),
        erfcinv=tf.math.erfcinv,
    )
    | at(
        REAL,
        cast=lambda x: ops.cast(ops.cast(x, "float64"), "float64"),
        clip=lambda x: ops.clip(x, -0.5, 0.7),
        clip_by_norm=lambda x: tf.clip_by_norm(x, 1.0),
        ldexp=lambda x: ops.ldexp(x, np.array([1, 2, 0, 3])),
        saturate_cast=lambda x: ops.saturate_cast(x, "float64"),
        where=lambda x: ops.where(x > 0.0, x * x, ops.sin(x)),
        select=lambda x: ops.select([x > 0.5, x > 0.0], [x, x * x], 0.0),
        stopless=lambda x: ops.exp(ops.zeros_like(x) + ops.ones_like(x) * x),
        tf_floormod=lambda x: tf.math.floormod(x, 0.3),
        round_straight=lambda x: x * ops.round(x),
        view_as_real=lambda x: ops.view_as_real(tf.complex(x, x * x)),
        polar=lambda x: ops.polar(ops.abs(x), x),
        complex_abs=lambda x: tf.abs(tf.complex(x, x * x)),
        complex_angle=lambda x: tf.math.angle(tf.complex(x, x * x)),
        complex_exp=lambda x: tf.exp(tf.complex(x, ops.flip(x, 0))),
        squared_difference=lambda x: tf.math.squared_difference(x, ops.flip(x, 0)),
        heaviside=lambda x: ops.heaviside(x, 0.5) * x,
        fake_quantization=lambda x: tf.quantization.fake_quant_with_min_max_args(
            tf.cast(x, "float32")
        ),
    )
)

REDUCTIONS = named(
    ops,
    REAL,
    "amax amin average cumsum logsumexp max mean median min nanmax nanmean nanmin "
    "nanprod nanstd nansum nanvar nancumsum prod ptp std sum var norm count_nonzero "
    "nanmedian argmax corrcoef",
) | at(
    REAL,
    cumprod=lambda x: ops.cumprod(x, 1),
    nancumprod=lambda x: ops.nancumprod(x, 1),
    logcumsumexp=lambda x: tf.math.cumulative_logsumexp(x, 1),
    associative_scan=lambda x: ops.associative_scan(lambda a, b: a * b, x),
    average_weighted=lambda x: ops.average(x, 1, weights=ops.flip(x, 1) + 5.0),
    max_axis=lambda x: ops.max(x, 1),
    mean_axis=lambda x: ops.mean(x, 0, keepdims=True),
    std_axis=lambda x: ops.std(x, 1),
    var_axis=lambda x: ops.var(x, 1),
    tf_variance=lambda x: tf.math.reduce_variance(x, 1),
    tf_std=lambda x: tf.math.reduce_std(x, 1),
    euclidean=lambda x: tf.math.reduce_euclidean_norm(x, 1),
    logsumexp_axis=lambda x: ops.logsumexp(x, 1),
    quantile=lambda x: ops.quantile(x, 0.3, axis=1),
    nanquantile=lambda x: ops.nanquantile(x, 0.3, axis=1),
    percentile=lambda x: ops.percentile(x, 30.0, axis=1),
    trapezoid=lambda x: ops.trapezoid(x, axis=1),
    norm_1=lambda x: ops.norm(x, 1, axis=1),
    norm_inf=lambda x: ops.norm(x, np.inf, axis=1),
    norm_3=lambda x: ops.norm(x, 3, axis=1),
    norm_nuclear=lambda x: ops.norm(x, "nuc"),
    norm_frobenius=lambda x: ops.norm(x, "fro"),
    segment_sum=lambda x: ops.segment_sum(x, np.array([0, 0, 1])),
    segment_max=lambda x: ops.segment_max(x, np.array([0, 0, 1])),
    segment_min=lambda x: ops.segment_min(x, np.array([0, 0, 1])),
    segment_prod=lambda x: ops.segment_prod(x, np.array([0, 0, 1])),
    segment_mean=lambda x: tf.math.segment_mean(x, np.array([0, 0, 1])),
    sorted_segment_max=lambda x: tf.math.segment_max(x, np.array([0, 0, 1])),
    sorted_segment_prod=lambda x: tf.math.segment_prod(x, np.array([0, 0, 1])),
    bincount=lambda x: ops.bincount(np.array([0, 1, 1]), weights=x[:, 0], minlength=3),
    top_k=lambda x: ops.top_k(x, 2)[0],
    sort=lambda x: ops.sort(x, 1),
    moments=lambda x: ops.moments(x, 1),
    tf_moments=lambda x: tf.nn.weighted_moments(x, [1], POSITIVE),
    normalize=lambda x: ops.normalize(x, 1),
    normalize_3=lambda x: ops.normalize(x, 1, order=3),
    l2_normalize=lambda x: tf.math.l2_normalize(x, 1),
    in_loss_softmax=lambda x: tf.nn.softmax_cross_entropy_with_logits(SHARES, x),
    in_loss_labels=lambda x: tf.nn.softmax_cross_entropy_with_logits(x, REAL),
    in_loss_sparse=lambda x: tf.nn.sparse_softmax_cross_entropy_with_logits(
        np.array([0, 2, 1]), x
    ),
    in_loss_sigmoid=lambda x: tf.nn.sigmoid_cross_entropy_with_logits(UNIT, x),
    binary_crossentropy=lambda x: ops.binary_crossentropy(UNIT, x, from_logits=True),
    binary_probabilities=lambda x: ops.binary_crossentropy(UNIT, ops.sigmoid(x)),
    categorical_crossentropy=lambda x: ops.categorical_crossentropy(SHARES, ops.softmax(x)),
    categorical_logits=lambda x: ops.categorical_crossentropy(SHARES, x, from_logits=True),
    sparse_categorical=lambda x: ops.sparse_categorical_crossentropy(
        np.array([0, 2, 1]), ops.softmax(x)
    ),
    psnr=lambda x: ops.psnr(x, OTHER, 1.0),
    cdist=lambda x: ops.cdist(x, OTHER),
    entropy=lambda x: ops.sum(ops.softmax(x) * ops.log_softmax(x), -1),
)

SHAPES = named(
    ops, REAL, "diagflat diagonal diff ravel rot90 trace transpose tril triu"
) | at(
    REAL,
    append=lambda x: ops.append(x, x * x),
    array_split=lambda x: ops.array_split(x, 3, 1),
    broadcast_to=lambda x: ops.broadcast_to(x, (2, 3, 4)),
    concatenate=lambda x: ops.concatenate([x, x * x], 1),
    cross=lambda x: ops.cross(x[:, :3], OTHER[:, :3]),
    diag=lambda x: ops.diag(x[0]),
    dstack=lambda x: ops.dstack([x, x]),
    expand_dims=lambda x: ops.expand_dims(x, 1),
    flip=lambda x: ops.flip(x, 1),
    get_item=lambda x: ops.get_item(x, (slice(0, 2), 1)),
    hstack=lambda x: ops.hstack([x, x]),
    meshgrid=lambda x: ops.meshgrid(x[:, 0], x[0]),
    moveaxis=lambda x: ops.moveaxis(x, 0, 1),
    pad=lambda x: ops.pad(x, ((1, 2), (0, 1))),
    pad_reflect=lambda x: ops.pad(x, ((1, 1), (1, 1)), "reflect"),
    pad_symmetric=lambda x: ops.pad(x, ((1, 1), (1, 1)), "symmetric"),
    repeat=lambda x: ops.repeat(x, 2, 1),
    reshape=lambda x: ops.reshape(x, (2, 6)),
    roll=lambda x: ops.roll(x, 1, 0),
    scatter=lambda x: ops.scatter(np.array([[0], [2], [2]]), x, (4, 4)),
    scatter_update=lambda x: ops.scatter_update(x, np.array([[0, 1]]), x[0, :1] ** 2),
    tensor_scatter_max=lambda x: tf.tensor_scatter_nd_max(x, [[0, 1]], x[1, :1]),
    slice=lambda x: ops.slice(x, (1, 0), (2, 3)),
    slice_update=lambda x: ops.slice_update(x, (1, 0), x[:1] ** 2),
    split=_pieces(2, 1),
    squeeze=lambda x: ops.squeeze(x[:, None]),
    stack=lambda x: ops.stack([x, x * x]),
    swapaxes=lambda x: ops.swapaxes(x, 0, 1),
    take=lambda x: ops.take(x, np.array([0, 1, 1]), 1),
    take_along_axis=lambda x: ops.take_along_axis(x, np.array([[0, 1, 1]] * 3), 1),
    tile=lambda x: ops.tile(x, (2, 2)),
    unfold=lambda x: ops.extract_sequences(x, 2, 1),
    unstack=lambda x: ops.unstack(x, axis=1),
    vander=lambda x: ops.vander(x[0], 3),
    vstack=lambda x: ops.vstack([x, x]),
    linspace=lambda x: ops.linspace(x[0], x[1], 3),
    logspace=lambda x: ops.logspace(x[0], x[1], 3),
    reverse_sequence=lambda x: tf.reverse_sequence(x, [2, 3, 1], 1),
    dynamic_partition=lambda x: tf.dynamic_partition(x, [0, 1, 0], 2),
    dynamic_stitch=lambda x: tf.dynamic_stitch([[0, 2], [1]], [x[:2], x[2:]]),
    sparse_product=lambda x: tf.sparse.sparse_dense_matmul(
        tf.sparse.from_dense(np.eye(3)), x
    ),
    sparse_values=lambda x: tf.sparse.sparse_dense_matmul(
        tf.SparseTensor([[0, 0], [1, 2]], x[0, :2], (3, 3)), x
    ),
    ragged_sum=lambda x: tf.reduce_sum(tf.RaggedTensor.from_row_lengths(x, [1, 2]), axis=1),
    embedding_lookup=lambda x: tf.nn.embedding_lookup(x, [0, 1, 1]),
)

LINEAR_ALGEBRA = (
    named(ops, MATRICES, "det slogdet inv pinv qr")
    | at(
        MATRICES,
        cholesky=lambda x: ops.cholesky(_spd(x)),
        cholesky_inverse=lambda x: ops.cholesky_inverse(ops.cholesky(_spd(x))),
        logdet=lambda x: ops.logdet(_spd(x)),
        eigh_values=lambda x: ops.eigh(_spd(x))[0],
        eigh_vectors=lambda x: ops.abs(ops.eigh(_spd(x))[1]),
        eig_values=lambda x: ops.sort(ops.real(ops.eig(_spd(x))[0])),
        solve=lambda x: ops.solve(x, ops.flip(x, 0)),
        solve_triangular=lambda x: ops.solve_triangular(x, ops.flip(x, 0), lower=True),
        svd_values=lambda x: ops.svd(x, compute_uv=False),
        svd_vectors=lambda x: ops.abs(ops.svd(x)[0]),
        lu=lambda x: ops.lu_factor(x[0])[0],
        matmul=lambda x: ops.matmul(x, ops.flip(x, 0)),
        einsum=lambda x: ops.einsum("abc,abd->acd", x, x),
        tensordot=lambda x: ops.tensordot(x, x, [[1, 2], [2, 1]]),
        dot=lambda x: ops.dot(x[0], x[1]),
        inner=lambda x: ops.inner(x[0], x[1]),
        outer=lambda x: ops.outer(x[0, 0], x[1, 1]),
        vdot=lambda x: ops.vdot(x, x),
        kron=lambda x: ops.kron(x[0], x[1]),
        expm=tf.linalg.expm,
        logm=lambda x: tf.math.real(tf.linalg.logm(tf.cast(_spd(x), "complex128"))),
        sqrtm=lambda x: tf.linalg.sqrtm(_spd(x)),
        banded=lambda x: tf.linalg.band_part(x, 1, 0),
        tridiagonal=lambda x: tf.linalg.tridiagonal_solve(
            x + 3.0, x[:, :, 0], diagonals_format="compact"
        ),
        tridiagonal_product=lambda x: tf.linalg.tridiagonal_matmul(
            x, x, diagonals_format="compact"
        ),
        cholesky_solve=lambda x: tf.linalg.cholesky_solve(tf.linalg.cholesky(_spd(x)), x),
        set_diag=lambda x: tf.linalg.set_diag(x, x[:, 0]),
    )
    | at(
        TALL,
        qr_tall=lambda x: ops.qr(x),
        pinv_tall=lambda x: ops.pinv(x),
        lstsq=lambda x: ops.lstsq(x[0], x[1]),
        tf_lstsq=lambda x: tf.linalg.lstsq(x, ops.flip(x, 0)),
        tf_lstsq_slow=lambda x: tf.linalg.lstsq(x, ops.flip(x, 0), fast=False),
        svd_tall=lambda x: ops.svd(x, compute_uv=False),
    )
)

SEQUENCES = named(ops, SEQUENCE, "rfft layer_normalization rms_normalization") | at(
    SEQUENCE,
    fft=lambda x: ops.fft((x, ops.flip(x, 1))),
    fft2=lambda x: ops.fft2((x, ops.flip(x, 1))),
    ifft2=lambda x: ops.ifft2((x, ops.flip(x, 1))),
    irfft=lambda x: ops.irfft((x, ops.flip(x, 1))),
    stft=lambda x: ops.stft(ops.reshape(x, (2, 20)), 8, 4, 8),
    istft=lambda x: ops.istft((x, ops.flip(x, 1)), 6, 2, 6),
    dct=lambda x: tf.signal.dct(x),
    correlate=lambda x: ops.correlate(x[0, :, 0], x[1, :3, 0]),
    attention=lambda x: ops.dot_product_attention(
        x[:, :, None], ops.flip(x, 1)[:, :, None], x[:, :, None]
    ),
    attention_causal=lambda x: ops.dot_product_attention(
        x[:, :, None], x[:, :, None], x[:, :, None], is_causal=True
    ),
    batch_normalization=lambda x: ops.batch_normalization(
        x, POSITIVE[0], POSITIVE[1], axis=-1
    ),
    conv_1d=lambda x: ops.conv(x, OTHER[:, :, None], 1, "same"),
    max_pool_1d=lambda x: ops.max_pool(x, 2),
    average_pool_1d=lambda x: ops.average_pool(x, 2, 1, "same"),
    map=lambda x: ops.map(lambda r: ops.tanh(r) * r, x),
    scan=lambda x: ops.scan(lambda c, r: (ops.tanh(c + r), c * r), x[0], x),
    vectorized_map=lambda x: ops.vectorized_map(lambda r: ops.tanh(r) * r, x),
    while_loop=lambda x: ops.while_loop(
        lambda i, h: i < 3, lambda i, h: (i + 1, ops.tanh(h) * x), (0, x)
    )[1],
    fori_loop=lambda x: ops.fori_loop(0, 3, lambda i, h: ops.tanh(h) * x, x),
    cond=lambda x: ops.cond(ops.sum(x) > -1e6, lambda: ops.tanh(x), lambda: x),
    switch=lambda x: ops.switch(1, [lambda h: h, lambda h: ops.tanh(h) * h], x),
    function=tf.function(lambda x: ops.tanh(x) * x, autograph=False),
    recomputed=tf.recompute_grad(lambda x: ops.tanh(x) * x),
    remat=lambda x: keras.remat(lambda x: ops.tanh(x) * x)(x),
    map_fn=lambda x: tf.map_fn(lambda r: ops.tanh(r) * r, x),
)

_KERNEL = _rng.normal(size=(2, 2, 3, 2))
_AFFINE = np.array([1.1, 0.1, 0.2, -0.1, 0.9, 0.3, 0.0, 0.0])
_POINTS = np.array([[0.0, 0.0], [0.0, 4.0], [4.0, 0.0], [4.0, 4.0]])


def _fused(x: Any, **options: Any) -> Any:
    x = tf.cast(x, "float32")
    return tf.compat.v1.nn.fused_batch_norm(x, tf.ones(3), tf.zeros(3), **options)[0]


def _coordinates(x: Any) -> Any:
    """Values at places, both of which depend on the tensor."""
    return ops.image.map_coordinates(x[0, :, :, 0], ops.abs(x[0, :2, :2, 1:]) * 2.0, 1)


IMAGES = (
    named(ops.image, IMAGE, "rgb_to_grayscale rgb_to_hsv hsv_to_rgb sobel_edges")
    | at(
        IMAGE,
        average_pool=lambda x: ops.average_pool(x, 2, 1, "same"),
        max_pool=lambda x: ops.max_pool(x, 2, 2, "same"),
        adaptive_average_pool=lambda x: ops.adaptive_average_pool(x, 2),
        adaptive_max_pool=lambda x: ops.adaptive_max_pool(x, 2),
        max_pool_with_argmax=lambda x: tf.nn.max_pool_with_argmax(x, 2, 2, "SAME")[0],
        conv=lambda x: ops.conv(x, _KERNEL, 1, "same"),
        conv_of_input=lambda x: ops.conv(x, x[0, :2, :2, :, None], 1, "valid"),
        conv_dilated=lambda x: ops.conv(x, _KERNEL, 1, "same", dilation_rate=2),
        conv_transpose=lambda x: ops.conv_transpose(x, _KERNEL.swapaxes(2, 3), 2, "same"),
        depthwise_conv=lambda x: ops.depthwise_conv(x, _KERNEL, 1, "same"),
        separable_conv=lambda x: ops.separable_conv(
            x, _KERNEL, np.ones((1, 1, 6, 2)), 1, "same"
        ),
        crop_images=lambda x: ops.image.crop_images(x, 1, 1, 1, 1),
        pad_images=lambda x: ops.image.pad_images(x, 1, 1, 1, 1),
        extract_patches=lambda x: ops.image.extract_patches(x, 2),
        map_coordinates=_coordinates,
        gaussian_blur=lambda x: ops.image.gaussian_blur(x, (3, 3), (1.0, 1.0)),
        ssim=lambda x: ops.image.ssim(x, IMAGE[::-1].copy(), 1.0, filter_size=3),
        total_variation=tf.image.total_variation,
        scale_and_translate=lambda x: ops.image.scale_and_translate(
            x, (2, 8, 9, 3), np.array([1.6, 1.5]), np.zeros(2), (1, 2), "linear"
        ),
        depth_to_space=lambda x: ops.depth_to_space(
            ops.concatenate([x, x[..., :1]], -1), 2
        ),
        space_to_depth=lambda x: ops.space_to_depth(x[:, :4], 2),
        space_to_batch=lambda x: tf.space_to_batch(x[:, :4], [2, 2], [[0, 0], [0, 0]]),
        unfold=lambda x: ops.unfold(ops.transpose(x, (0, 3, 1, 2)), 2),
        dilation=lambda x: tf.nn.dilation2d(
            x, np.zeros((2, 2, 3)), [1] * 4, "SAME", "NHWC", [1] * 4
        ),
        erosion=lambda x: tf.nn.erosion2d(
            x, np.zeros((2, 2, 3)), [1] * 4, "SAME", "NHWC", [1] * 4
        ),
        fractional_max_pool=lambda x: tf.nn.fractional_max_pool(
            x, [1.0, 1.5, 1.5, 1.0], seed=1
        )[0],
        fractional_avg_pool=lambda x: tf.nn.fractional_avg_pool(
            x, [1.0, 1.5, 1.5, 1.0], seed=1
        )[0],
        resize_nearest=lambda x: ops.image.resize(x, (8, 9), "nearest"),
        extract_glimpse=lambda x: tf.image.extract_glimpse(
            tf.cast(x, "float32"), (3, 3), np.zeros((2, 2), "float32")
        ),
    )
    | {
        name: single(lambda f=f: f, IMAGE)
        for name, f in {
            "resize_bilinear": lambda x: ops.image.resize(x, (8, 9)),
            "resize_bicubic": lambda x: ops.image.resize(x, (8, 9), "bicubic"),
            "resize_lanczos3": lambda x: ops.image.resize(x, (8, 9), "lanczos3"),
            "resize_lanczos5": lambda x: ops.image.resize(
                ops.cast(x, "float32"), (8, 9), "lanczos5"
            ),
            "resize_area": lambda x: ops.image.resize(x, (8, 9), "area"),
            "resize_antialias": lambda x: ops.image.resize(
                ops.cast(x, "float32"), (3, 4), antialias=True
            ),
            "per_image_standardization": tf.image.per_image_standardization,
            "local_response_normalization": lambda x: tf.nn.local_response_normalization(
                tf.cast(4.0 * x, "float32")
            ),
            "local_response_normalization_narrow": lambda x: (
                tf.nn.local_response_normalization(
                    tf.cast(x, "float32"), depth_radius=1, bias=0.5, alpha=2.0, beta=0.7
                )
            ),
            "fused_batch_norm": lambda x: _fused(x, is_training=True),
            "fused_batch_norm_of_statistics": lambda x: _fused(
                x, mean=tf.zeros(3) + 0.4, variance=tf.ones(3), is_training=False
            ),
            "affine_transform": lambda x: ops.image.affine_transform(x, _AFFINE),
            "perspective_transform": lambda x: ops.image.perspective_transform(
                x, _POINTS, _POINTS * [0.9, 1.2] + 0.5
            ),
            "crop_and_resize": lambda x: tf.image.crop_and_resize(
                x, [[0.1, 0.1, 0.8, 0.9]], [0], (4, 4)
            ),
            "adjust_contrast": lambda x: tf.image.adjust_contrast(x, 1.3),
            "adjust_saturation": lambda x: tf.image.adjust_saturation(x, 1.3),
            "adjust_hue": lambda x: tf.image.adjust_hue(x, 0.1),
        }.items()
    }
)

OPERATIONS = {
    f"{kind}: {name}": case
    for kind, cases in {
        "elementwise": ELEMENTWISE,
        "reduction": REDUCTIONS,
        "shape": SHAPES,
        "linear algebra": LINEAR_ALGEBRA,
        "sequence": SEQUENCES,
        "image": IMAGES,
    }.items()
    for name, case in cases.items()
}

REFUSED = {
    "elementwise: igamma": "IgammaGradA",
    "elementwise: igammac": "IgammaGradA",
    "elementwise: zeta": "Zeta",
    "elementwise: betainc": "Betainc",
    "elementwise: fake_quantization": "FakeQuantWithMinMaxArgsGradient",
    "reduction: bincount": "DenseBincount",
    "reduction: moments": "StopGradient",
    "shape: slice_update": "XlaDynamicUpdateSlice",
    "linear algebra: lu": "Lu",
    "linear algebra: logm": "MatrixLogarithm",
    "linear algebra: tf_lstsq_slow": "MatrixSolveLs",
    "sequence: layer_normalization": "StopGradient",
    "sequence: recomputed": "IdentityN",
    "sequence: remat": "IdentityN",
    "image: max_pool_with_argmax": "MaxPoolGradWithArgmax",
    "image: hsv_to_rgb": "HSVToRGB",
    "image: dilation": "Dilation2DBackpropInput",
    "image: erosion": "Dilation2DBackpropInput",
    "image: fractional_max_pool": "FractionalMaxPoolGrad",
    "image: fractional_avg_pool": "FractionalAvgPoolGrad",
    "image: extract_glimpse": "ExtractGlimpseV2",
    "image: resize_bilinear": "ResizeBilinearGrad",
    "image: resize_lanczos3": "ScaleAndTranslate",
    "image: resize_area": "ResizeArea",
    "image: affine_transform": "ImageProjectiveTransformV3",
    "image: perspective_transform": "ImageProjectiveTransformV3",
    "image: crop_and_resize": "CropAndResizeGradImage",
    "image: adjust_contrast": "AdjustContrastv2",
    "image: adjust_saturation": "AdjustSaturation",
    "image: adjust_hue": "AdjustHue",
}
"""Those that TensorFlow cannot differentiate, with the operation that is to blame."""

"""Random shapes, types, orders and options: a clear error, or finite numbers.

`make test` tries some hundred, `make test-slow` ten thousand.
"""

from __future__ import annotations

import warnings

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings

import keras_kare as kk

REFUSALS = (ValueError, TypeError, tf.errors.InvalidArgumentError)
FEW, MANY = 100, 5000


def fuzz(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


class Linear(kk.kernels.Kernel):
    """`x xᵀ + 1`, which needs no tracing."""

    def gram(self, x, dtype=None, out=None):
        return self.cross(x, x, dtype)

    def cross(self, x1, x2, dtype=None, out=None):
        a, b = (tf.cast(t, dtype or "float32") for t in (x1, x2))
        flat = [tf.reshape(t, (tf.shape(t)[0], np.prod(t.shape[1:]))) for t in (a, b)]
        return tf.matmul(flat[0], flat[1], transpose_b=True) + 1.0

    def diag(self, x, dtype=None):
        return tf.linalg.diag_part(self.gram(x, dtype))


DTYPES = ["float16", "float32", "float64", "int8", "int64", "uint8", "bool", "U3", "object"]
NUMBERS = st.one_of(
    st.floats(-3, 3, width=32),
    st.sampled_from([0.0, 1.0, -1.0, 1e-30, 1e30, 3e38, np.nan, np.inf, -np.inf]),
)


@st.composite
def arrays(draw, rows=None):
    """Small arrays of any type, order, rank and content."""
    count = draw(st.integers(0, 7)) if rows is None or draw(st.booleans()) else rows
    rank = draw(st.sampled_from([0, 1, 2, 2, 2, 3]))
    shape = (count, *draw(st.lists(st.integers(0, 3), min_size=2, max_size=2)))[:rank]
    plain = draw(st.booleans())
    elements = st.floats(-3, 3, width=16) if plain else NUMBERS
    values = draw(hnp.arrays("float64", shape, elements=elements))
    dtype = "float32" if plain else draw(st.sampled_from(DTYPES))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NaN as an integer
        values = np.asarray(values).astype(dtype)
    order = draw(st.sampled_from(["C", "F", "strided"]))
    if order == "strided" and values.ndim:
        return np.repeat(values, 2, axis=0)[::2]
    return np.asarray(values, order="F" if order == "F" else "C")


RIDGES = st.one_of(
    st.sampled_from(["auto", 1e-30, 1e-8, 1.0, 1e30, 0.0, -1.0, np.nan, np.inf, None, "a"]),
    st.floats(1e-6, 1e6),
)


@st.composite
def machines(draw):
    x = draw(arrays())
    rows = x.shape[0] if x.ndim else None
    weights = draw(st.sampled_from([None, None, "some"]))
    return {
        "x": x,
        "y": draw(arrays(rows)),
        "sample_weight": weights and draw(arrays(rows)),
        "head": {
            "ridge": draw(RIDGES),
            "relative": draw(st.booleans()),
            "form": draw(st.sampled_from(["auto", "dual", "primal"])),
            "keep_anchors": draw(st.booleans()),
            "residual": draw(st.sampled_from([False, False, True])),
        },
    }


def told(error):
    """An error names an argument, or says what to do."""
    message = str(error)
    assert len(message) > 30, message
    assert "`" in message or "Received" in message or "Use " in message, message


def check_machine(case):
    try:
        model = kk.KAREModel(Linear(), head=kk.NTKRidgeHead(**case["head"]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jitter is reported as a warning
            model.fit_head(case["x"], case["y"], sample_weight=case["sample_weight"])
            predictions = np.asarray(model.predict_on_batch(case["x"]))
            variance = model.variance(case["x"])
    except REFUSALS as error:
        told(error)
        return
    assert predictions.shape == (len(case["x"]), case["y"].size // len(case["y"]))
    assert np.all(np.isfinite(predictions))
    assert np.all(np.isfinite(variance))
    assert np.all(variance >= 0.0)
    report = [v for v in model.head.report.values() if isinstance(v, float)]
    assert np.all(np.isfinite(report)), model.head.report


def check_risk(case):
    y, gram, ridge, weights, function = case
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = np.asarray(function(y, gram, ridge, sample_weight=weights))
    except REFUSALS as error:
        told(error)
        return
    assert np.all(np.isfinite(value))


@st.composite
def risks(draw):
    b = draw(arrays())
    if b.ndim == 2 and b.dtype.kind == "f" and draw(st.booleans()):
        with np.errstate(all="ignore"):
            b = (b.astype("float64") @ b.T.astype("float64")).astype(b.dtype)
    rows = b.shape[0] if b.ndim else None
    return (
        draw(arrays(rows)),
        b,
        draw(st.one_of(RIDGES, st.just(np.array(0.1)))),
        draw(st.one_of(st.none(), arrays(rows))),
        draw(st.sampled_from([kk.risk.kare, kk.risk.leave_one_out])),
    )


@fuzz(FEW)
@given(machines())
def test_machines(case):
    check_machine(case)


@fuzz(FEW)
@given(risks())
def test_risks(case):
    check_risk(case)


@pytest.mark.slow
@fuzz(MANY)
@given(machines())
def test_many_machines(case):
    check_machine(case)


@pytest.mark.slow
@fuzz(MANY)
@given(risks())
def test_many_risks(case):
    check_risk(case)


def test_a_good_case_is_not_refused():
    """The fuzzed calls do reach their ends."""
    rng = np.random.default_rng(0)
    case = {
        "x": rng.normal(size=(5, 2)),
        "y": rng.normal(size=(5, 1)),
        "sample_weight": None,
        "head": {"ridge": 1.0, "form": "dual"},
    }
    keras.utils.set_random_seed(0)
    model = kk.KAREModel(Linear(), head=kk.NTKRidgeHead(**case["head"]))
    model.fit_head(case["x"], case["y"])
    check_machine(case)
    assert model.head.report["rows"] == 5

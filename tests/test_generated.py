"""Generated networks against a tape over one output of one row at a time.

On rows that the plan did not see. `make test` tries some dozens, which cover every
layer type and way of use; `make test-slow` tries 300.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from generated_layers import PARTS
from generated_networks import (
    Case,
    as_tensors,
    cases,
    fresh_copy,
    jacobians_by_hand,
    kernel_by_hand,
)
from generated_uses import USES

import keras_kare as kk

SEED, FEW = 139, 41
SLOW_SEED, MANY = 1500, 300

SERVED = ("plain", "direct", "twice", "behind", "nested", "nested model", "gated twice")
"""Ways of use that are calls of the layer and nothing else: its rule serves them."""

WITHOUT_RULE = ("no rule", "subclass", "low rank")


def relative(values: Any, expected: np.ndarray, scale: float) -> float:
    values = np.asarray(values, "float64")
    assert values.shape == expected.shape
    assert np.all(np.isfinite(values))
    return float(np.max(np.abs(values - expected))) / scale


def check_announced(case: Case, kernel: Any, x: Any, messages: list[str]) -> None:
    """Every variable that takes the plain Jacobian is named in a warning, no other.

    A graph in which the network goes other ways than in the plan announces what it adds.
    """
    said = [m for m in messages if "plain Jacobian" in m]
    announced = " ".join(m for m in said if "goes other ways" not in m)
    if case.use in SERVED and case.part not in WITHOUT_RULE and case.form != "traced":
        assert not said
    for layer in kernel.plan(x).layers:
        for path in layer.variables:
            assert (path in announced) is layer.fallback, (path, announced)


def is_stale(network: Any, x: Any) -> bool:
    """Whether functions in it keep weights of the time when they were traced.

    As Keras does where symbolic inputs meet a layer that calls a `tf.function`.
    """
    called = np.asarray(network(x, training=False), "float64")
    tf.config.run_functions_eagerly(True)
    try:
        meant = np.asarray(network(x, training=False), "float64")
    finally:
        tf.config.run_functions_eagerly(False)
    return float(np.max(np.abs(called - meant))) > 0.05 * float(np.max(np.abs(meant)))


def check(case: Case, everything: bool) -> None:
    """Half of the cases are planned by `check`, half by a first `gram`.

    The second half is spared the trace of `cross` where not `everything` is asked.
    """
    planned_by_check = bool(case.seed % 2)
    with case.policy():
        network = case.make()
        plan_rows, rows = case.plan_rows(), case.other_rows()
        kernel, found = kk.kernels.NTK(network, case.outputs), {}
        if is_stale(network, as_tensors(rows, slice(None))):
            with pytest.raises(ValueError, match="something else than its layers' Python"):
                kernel.check(rows)
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if planned_by_check:
                kernel.check(plan_rows)
            else:
                found["plan", "plan"] = kernel.gram(plan_rows)
            found["rows", "rows"] = kernel.gram(rows)
            if planned_by_check or everything:
                found["rows", "plan"] = kernel.cross(rows, plan_rows)
        check_announced(case, kernel, rows, [str(w.message) for w in caught])

        fresh = fresh_copy(case, network.get_weights())
        j = {
            "plan": jacobians_by_hand(fresh, plan_rows),
            "rows": jacobians_by_hand(fresh, rows),
        }
        scale = np.max(np.abs(kernel_by_hand(case.outputs, j["rows"], j["rows"])))
        assert scale > 0.0
        for (left, right), values in found.items():
            expected = kernel_by_hand(case.outputs, j[left], j[right])
            assert relative(values, expected, float(scale)) < case.tolerance, (left, right)

        for count in (4, 5):  # of both, plans and kernels make traces
            x = as_tensors(rows, slice(0, count))
            before, after = (np.asarray(n(x, training=False)) for n in (fresh, network))
            np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("case", cases(FEW, SEED), ids=str)
def test_generated(case):
    check(case, everything=False)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases(MANY, SLOW_SEED), ids=str)
def test_many_generated(case):
    check(case, everything=True)


def test_few_cover_all():
    few = cases(FEW, SEED)
    assert {case.use for case in few} == {*USES, "direct"}
    assert {case.part for case in few} == set(PARTS)


def test_the_same_seed_is_the_same_network():
    one, other = (cases(3, SEED)[2].make() for _ in range(2))
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


OPEN_TO_SEE = [case for case in cases(FEW, SEED) if case.form in ("subclassed", "traced")]


@pytest.mark.parametrize("case", OPEN_TO_SEE[::3], ids=str)
def test_rows_of_the_plan_open_no_gate(case):
    """What the rows of the plan do not show, the others do."""
    with case.policy():
        body = case.make().body
        for rows, opened in ((case.plan_rows(), 0), (case.other_rows(), 2)):
            gate = body.gate_of(tf.constant(rows[0] if case.two else rows))
            assert np.count_nonzero(gate) == opened

"""The losses of the package, for tests of what every loss has: a new one is a line here."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest

import keras_kare as kk


@dataclass(frozen=True)
class LossCase:
    """A loss, and what it does not have.

    Attributes:
        kind: Its class.
        weights: Whether `evaluate` takes weights of rows.
        fewest: The fewest rows of a batch.
        trains_weighted: Whether training takes weights of rows.
        given: Arguments besides `ridge` and `relative`, not at their defaults.
    """

    kind: type[kk.losses.GramLoss]
    weights: bool = True
    fewest: int = 2
    trains_weighted: bool = True
    given: tuple[tuple[str, Any], ...] = ()


CASES = {
    "kare": LossCase(kk.losses.KARE),
    "holdout_kare": LossCase(
        kk.losses.HoldoutKARE, weights=False, trains_weighted=False, fewest=4
    ),
    "full_kare": LossCase(
        kk.losses.FullKARE,
        trains_weighted=False,
        given=(("probes", 5), ("tolerance", 1e-6), ("method", "primal"), ("seed", 3)),
    ),
}

IN_GRAPHS = [case for case in CASES.values() if not case.kind.supplies_gradients]
"""Losses whose steps are traced, and may be shared."""


def over_losses(**choices: list[Any]) -> Any:
    """Run a test for each loss and each combination of choices that it knows.

    Args:
        choices: Values of further arguments of the test, by their names. Where one is
            `weighted=True`, losses without weights of rows are left out.
    """
    made = []
    for (name, case), values in itertools.product(
        CASES.items(), itertools.product(*choices.values())
    ):
        given = dict(zip(choices, values, strict=True))
        if given.get("weighted") and not case.weights:
            continue
        told = [key if value is True else f"{key}={value}" for key, value in given.items()]
        shown = [t for t, value in zip(told, values, strict=True) if value is not False]
        made.append(pytest.param(case, *values, id="-".join([name, *shown])))
    return pytest.mark.parametrize(("case", *choices), made)

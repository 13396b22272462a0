"""What the estimators do unless told otherwise: the recipe that was found best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Defaults:
    """Every parameter of the estimators, as `KARERegressor` explains them.

    The experiments' recipe is made of the same; `benchmarks/results/README.md` compares it
    with others.
    """

    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "gelu"
    epochs: int = 100
    learning_rate: float = 3e-3
    kare_ridge: float = 1.0
    ridge: float | str = "auto"
    batch_size: int = 512
    folds: int = 4
    networks: int = 3
    machines: int = 5
    laplace: bool = True
    centres: int | str | None = "auto"
    time_budget: float | None = None
    categorical_features: Any = "auto"
    few_values: int = 8
    standardize: bool = True
    dtype: str = "float32"
    random_state: Any = None
    verbose: int = 0


DEFAULTS = Defaults()

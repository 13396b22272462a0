"""keras_kare: train a network's neural tangent kernel to generalise."""

import importlib
import sys
from typing import Any

from keras_kare._backend import require_tensorflow

require_tensorflow()

from keras_kare import (  # noqa: E402
    callbacks,
    datasets,
    diagnostics,
    kernels,
    layers,
    losses,
    metrics,
    mkl,
    models,
    risk,
    solvers,
)
from keras_kare._version import __version__  # noqa: E402
from keras_kare.layers import NTKRidgeHead  # noqa: E402
from keras_kare.models import KAREModel  # noqa: E402
from keras_kare.risk import stochastic  # noqa: E402

sys.modules["keras_kare.stochastic"] = stochastic  # for `import keras_kare.stochastic`

__all__ = [
    "KAREModel",
    "NTKRidgeHead",
    "__version__",
    "callbacks",
    "datasets",
    "diagnostics",
    "kernels",
    "layers",
    "losses",
    "metrics",
    "mkl",
    "models",
    "risk",
    "solvers",
    "stochastic",
]


LATER = ("experiments", "recipes", "sklearn")
"""Rooms that need scikit-learn, an extra."""


def __dir__() -> list[str]:
    return sorted({*globals(), *LATER})


def __getattr__(name: str) -> Any:
    """Import what needs an extra when it is first used."""
    if name in LATER:
        return importlib.import_module(f"keras_kare.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

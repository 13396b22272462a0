"""How `(K/n + λI) α = y` is solved: one solver a file, one result type."""

from keras_kare.solvers.cholesky import cholesky
from keras_kare.solvers.result import Solution
from keras_kare.solvers.spectral import Spectral

__all__ = ["Solution", "Spectral", "cholesky"]

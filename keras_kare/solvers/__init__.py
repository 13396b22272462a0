"""How `(K/n + λI) α = y` is solved: one solver a file, one result type."""

from keras_kare.solvers.auto import Decision, decide, get
from keras_kare.solvers.cg import CG
from keras_kare.solvers.cholesky import Cholesky
from keras_kare.solvers.eigenpro import EigenPro
from keras_kare.solvers.nystrom import Nystrom
from keras_kare.solvers.primal import Primal
from keras_kare.solvers.solution import Solution
from keras_kare.solvers.solver import Prepared, Solver
from keras_kare.solvers.spectral import Spectral
from keras_kare.solvers.stream import StreamSystem
from keras_kare.solvers.system import System

__all__ = [
    "CG",
    "Cholesky",
    "Decision",
    "EigenPro",
    "Nystrom",
    "Prepared",
    "Primal",
    "Solution",
    "Solver",
    "Spectral",
    "StreamSystem",
    "System",
    "decide",
    "get",
]

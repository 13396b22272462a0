"""Stochastic block iteration: the solver, how it reads rows, its steps and its epochs."""

from keras_kare.solvers.eigenpro.eigenpro import EigenPro

__all__ = ["EigenPro"]

"""Kernels of what networks compute of rows."""

from keras_kare.kernels.of_networks.conjugate import Conjugate
from keras_kare.kernels.of_networks.deep import Deep

__all__ = ["Conjugate", "Deep"]

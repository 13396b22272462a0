"""Networks as multiple kernel learning: which weights their masking kernels get."""

from keras_kare.mkl.gated_relu import GatedReLU

__all__ = ["GatedReLU"]

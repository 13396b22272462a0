"""Kernels made of kernels: sums, products, weights, cosines, and some of the columns."""

from keras_kare.kernels.combined.normalized import Normalized
from keras_kare.kernels.combined.on import On
from keras_kare.kernels.combined.product import Product
from keras_kare.kernels.combined.sum import Sum
from keras_kare.kernels.combined.weighted import Weighted

__all__ = ["Normalized", "On", "Product", "Sum", "Weighted"]

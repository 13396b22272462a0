"""Keras callbacks for training kernels."""

from keras_kare.callbacks.kernel_diagnostics import KernelDiagnostics

__all__ = ["KernelDiagnostics"]

"""Layers that hold a solved kernel machine."""

from keras_kare.layers.ntk_ridge_head import NTKRidgeHead

__all__ = ["NTKRidgeHead"]

"""Keras models around a kernel and its head."""

from keras_kare.models.kare_model import KAREModel

__all__ = ["KAREModel"]

"""What a kernel says of a network, put to the test."""

from keras_kare.diagnostics.equivalence import Equivalence, equivalence

__all__ = ["Equivalence", "equivalence"]

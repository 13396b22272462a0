"""The fast exact path: one small file a layer family, in a registry."""

from keras_kare.kernels.structured import dense as dense
from keras_kare.kernels.structured import normalization as normalization
from keras_kare.kernels.structured.registry import register_rule
from keras_kare.kernels.structured.rule import CallRule, LayerRule

__all__ = ["CallRule", "LayerRule", "register_rule"]

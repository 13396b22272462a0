"""The fast exact path: one small file a layer family, in a registry."""

from keras_kare.kernels.structured import convolution as convolution
from keras_kare.kernels.structured import dense as dense
from keras_kare.kernels.structured import embedding as embedding
from keras_kare.kernels.structured import normalization as normalization
from keras_kare.kernels.structured import recurrent as recurrent
from keras_kare.kernels.structured import resizing as resizing
from keras_kare.kernels.structured import text as text
from keras_kare.kernels.structured.registry import register_rule
from keras_kare.kernels.structured.rule import LayerRule

__all__ = ["LayerRule", "register_rule"]

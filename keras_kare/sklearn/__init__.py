"""scikit-learn estimators: `KAREClassifier` and `KARERegressor`.

They need scikit-learn: `pip install keras_kare[sklearn]`.
"""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError(
        "`keras_kare.sklearn` needs scikit-learn: `pip install keras_kare[sklearn]`."
    ) from error

from keras_kare.sklearn.classifier import KAREClassifier
from keras_kare.sklearn.regressor import KARERegressor

__all__ = ["KAREClassifier", "KARERegressor"]

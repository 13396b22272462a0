"""What every kernel answers."""

from __future__ import annotations

import abc
import hashlib
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _rows
from keras_kare.kernels.identity import Identity
from keras_kare.kernels.operator import CHUNK, FeatureOperator, KernelOperator


class Kernel(keras.layers.Layer, abc.ABC):
    """Base class of kernels: a Keras layer that answers `gram`, `cross`, `diag`.

    A kernel is a layer so that its variables are tracked, trained and saved.
    Subclasses define the three verbs; `operator` and every solver then work, by
    tiles. A kernel with a finite feature map also sets `has_features = True` and
    defines `vjp` and `jvp`, which gives the head its primal form, and products with
    the matrix that need no kernel values.

    Rows are always the first axis. `x` may be a nested structure of tensors
    (networks with several inputs) that all have the same number of rows.
    """

    has_features: bool = False
    _identity: Identity | None = None

    @abc.abstractmethod
    def gram(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        """Return the symmetric matrix of values between all rows of `x`, `(n, n)`."""

    @abc.abstractmethod
    def cross(self, x1: Any, x2: Any, dtype: str | None = None) -> tf.Tensor:
        """Return kernel values between the rows of `x1` and those of `x2`, `(n1, n2)`."""

    @abc.abstractmethod
    def diag(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        """Return the kernel value of each row of `x` with itself, `(n,)`."""

    def __add__(self, other: Any) -> Kernel:
        """Return the sum of two kernels, a `keras_kare.kernels.Sum`."""
        from keras_kare.kernels.combined import Sum  # made of this class

        return Sum([self, other])

    def __radd__(self, other: Any) -> Kernel:
        """Return the kernel itself, with which `sum(kernels)` begins: 0 and a kernel."""
        return self if other == 0 else NotImplemented

    def __mul__(self, other: Any) -> Kernel:
        """Return the product of two kernels, or of a kernel and a number, which trains."""
        from keras_kare.kernels.combined import Product, Weighted

        number = isinstance(other, int | float | np.number)
        return Weighted(self, other) if number else Product([self, other])

    __rmul__ = __mul__

    def adapt(self, x: Any) -> None:
        """Find from rows what is to be found from them, such as `scale="median"`, if any.

        Args:
            x: `(n, ...)`.
        """

    def operator(self, x: Any) -> KernelOperator:
        """Return the matrix `gram(x)` as a linear map, which is never formed.

        Args:
            x: `(n, ...)`.

        Returns:
            A `KernelOperator`: `operator @ v` is `K v` for `v` of shape `(n,)` or
            `(n, m)`; with a finite feature map `J`, `operator.vjp(v)` is `Jᵀ v`,
            `operator.jvp(w)` is `J w`, and `K v = J (Jᵀ v)`.

        Raises:
            ValueError: As `gram`.

        Example:

        ```python
        product = kernel.operator(x) @ v
        ```
        """
        return (FeatureOperator if self.has_features else KernelOperator)(self, x)

    def vjp(self, x: Any, v: Any, dtype: str | None = None) -> list[tf.Tensor]:
        """Return `Jᵀ v`: the feature map's transpose applied to `v` of shape `(n, m)`."""
        raise NotImplementedError(
            f"{type(self).__name__} has no finite feature map, so no primal form. "
            "Use a head with `form='dual'`."
        )

    def jvp(self, x: Any, w: list[tf.Tensor]) -> tf.Tensor:
        """Return `J w`, `(n, m)`: the feature map applied to weights as `vjp` has them."""
        raise NotImplementedError(
            f"{type(self).__name__} has no finite feature map, so no primal form. "
            "Use a head with `form='dual'`."
        )

    def feature_variables(self) -> list[keras.Variable]:
        """Return the variables by which features are derivatives, where they are that."""
        return list(self.trainable_variables)

    def feature_count(self, x: Any) -> int:
        """Count the numbers that the feature map of a row has."""
        return sum(map(math.prod, self._feature_shapes(x)))

    def _feature_shapes(self, x: Any) -> list[tuple[int, ...]]:
        """Return the shapes of the arrays that `vjp` returns, without that of vectors."""
        row = _rows.take(x, slice(1))
        return [tuple(w.shape[1:]) for w in self.vjp(row, np.ones((1, 1)))]

    def feature_rows(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        """Write out `J`, `(n, F)`: the arrays that `vjp` returns, side by side."""
        rows = _rows.count(x)
        parts = self.vjp(x, np.eye(rows), dtype=dtype)
        return tf.concat([tf.reshape(w, (rows, -1)) for w in parts], axis=1)

    def weights_from(self, flat: np.ndarray, x: Any) -> list[tf.Tensor]:
        """Bring `(F, m)`, in the order of `feature_rows`, to what `vjp` returns."""
        shapes = self._feature_shapes(x)
        ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
        pairs = zip(np.split(flat.T, ends, axis=1), shapes, strict=True)
        return [tf.constant(np.reshape(part, (-1, *shape))) for part, shape in pairs]

    def held(self, x: Any) -> Any:
        """Return what `pull` and `push` need of rows: whatever saves computing it again."""
        return x

    def pull(self, held: Any, v: tf.Tensor) -> list[tf.Tensor]:
        """Return `Jᵀ v` of what `held` returned, in arrays of an order of its own."""
        return self.vjp(held, v, dtype=v.dtype.name)

    def push(self, held: Any, w: list[tf.Tensor]) -> tf.Tensor:
        """Return `J w`, `(n, m)`, for weights as `pull` returns them."""
        return self.jvp(held, w)

    def pair_flops(self, x: Any) -> float:
        """Estimate the floating-point operations that a kernel value takes."""
        return 64.0

    def chunk(self, x: Any, vectors: int) -> tuple[int, bool]:
        """Return how many rows should go at a time, and whether to keep what is held.

        Args:
            x: All rows.
            vectors: How many vectors are multiplied at once.
        """
        return CHUNK, False

    def check(self, x: Any, rows: int | None = None) -> None:
        """Refuse, before long work, rows or weights for which there is no kernel.

        Args:
            x: `(n, ...)`.
            rows: How many of them will go at a time. Defaults to all.
        """

    def check_gradient(self, x: Any) -> None:
        """Refuse kernels whose values TensorFlow cannot differentiate, before training.

        Args:
            x: `(n, ...)`, which `check` has let through.
        """

    def is_constant(self, x: Any) -> bool:
        """Tell whether no variable that trains has any influence on kernel values.

        Args:
            x: `(n, ...)`, which `check` has let through.
        """
        return False

    def check_shapes(self, name: str, x: Any) -> None:
        """Refuse rows of a shape that the kernel does not take; name the argument."""

    def normalized(
        self, x1: Any, x2: Any = None, dtype: str | None = None
    ) -> tf.Tensor | None:
        """Return `K(x, x') / √(K(x, x) K(x', x'))` where there is a way without overflow.

        Args:
            x1: `(n1, ...)`.
            x2: `(n2, ...)`. Defaults to `x1`.
            dtype: Of the values.

        Returns:
            `(n1, n2)`; `None` where dividing is all that is left.
        """
        return None

    def normalized_diag(self, x: Any, dtype: str | None = None) -> tf.Tensor | None:
        """Return `normalized` of each row with itself, 1 or 0; or `None`, likewise."""
        return None

    def check_codes(self, name: str, x: Any) -> None:
        """Refuse rows, as they are passed, whose codes merge in a model's type."""

    def open_spec(self, x: Any) -> Any:
        """Return shapes and types of such rows, `tf.TensorSpec`s nested as `x`.

        The number of rows is unknown, and so are the axes that the inputs of the
        kernel's network leave open (`keras.Input((None, 3))`).

        Args:
            x: `(n, ...)`.
        """
        inputs = getattr(getattr(self, "network", None), "inputs", None) or []
        parts = keras.tree.flatten(x)
        if isinstance(x, dict) and {t.name for t in inputs} >= set(x):
            by_name = {t.name: t for t in inputs}
            inputs = keras.tree.flatten({name: by_name[name] for name in x})
        if len(inputs) != len(parts):  # a subclassed network does not say
            inputs = parts
        pairs = zip(parts, inputs, strict=True)
        specs = [
            tf.TensorSpec(_open_axes(part, wanted), part.dtype) for part, wanted in pairs
        ]
        return keras.tree.pack_sequence_as(x, specs)

    def parts(self) -> list[Any]:
        """Return the kernels and networks that the kernel is made of, if any."""
        return []

    @property
    def shares(self) -> bool:
        """Whether kernels of networks of the same architecture have functions in common."""
        return False

    def shared(self, function: Any, key: str, fixed: bool, *arguments: Any) -> Any:
        """Return a function of rows that is traced once for networks of an architecture.

        Args:
            function: Of the arguments. It may read the network's weights, and nothing
                else that differs between networks of the same architecture and `key`.
            key: Tells functions apart.
            fixed: Whether most calls will be of so many rows.
            *arguments: Arrays, or structures of them, of `n` rows.

        Returns:
            A function of such arguments, of `n` rows; `None` where kernel values would
            have to go in tiles, or nothing is shared.
        """
        return None

    def prediction_cost(self, anchors: int, targets: int) -> dict[str, float]:
        """Count multiply-adds a predicted row, for each form of a head that there is.

        Args:
            anchors: Number of anchors of the dual form.
            targets: Number of columns to predict.
        """
        return {"dual": float(anchors)}

    @property
    def metrics(self) -> list[Any]:
        """An empty list: metrics that a network was compiled with belong to its training.

        A `KAREModel` would otherwise report them under the names of its own.
        """
        return []

    def architecture(self) -> str:
        """Return a hash of what the kernel is, whatever its variables hold (`Identity`)."""
        if self._identity is None:
            self._identity = Identity(self)
        return self._identity.digest

    def weights_fingerprint(self) -> str:
        """Return a hash of the values of all variables, and of which of them train."""
        digest = hashlib.blake2b(digest_size=16)
        for variable in self.weights:
            digest.update(b"1" if variable.trainable else b"0")
            digest.update(np.ascontiguousarray(variable.value).tobytes())
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """Return a hash of all that the kernel's values depend on."""
        return f"{self.architecture()}{self.weights_fingerprint()}"

    def call(self, x1: Any, x2: Any = None) -> tf.Tensor:
        """Return `gram(x1)`, or `cross(x1, x2)` where `x2` is given."""
        return self.gram(x1) if x2 is None else self.cross(x1, x2)


def _open_axes(part: Any, wanted: Any) -> list[int | None]:
    """Return the shape of `part` without what `wanted` leaves open."""
    shape, open_shape = list(part.shape[1:]), list(wanted.shape[1:])
    if len(shape) == len(open_shape):  # Keras adds and drops axes of length one
        pairs = zip(shape, open_shape, strict=True)
        shape = [None if size is None else own for own, size in pairs]
    return [None, *shape]

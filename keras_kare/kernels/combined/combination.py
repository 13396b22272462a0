"""What all kernels that are made of kernels have in common."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, Self

import tensorflow as tf

from keras_kare.kernels import ties
from keras_kare.kernels.identity import digest
from keras_kare.kernels.kernel import Kernel
from keras_kare.kernels.of_parts import OfParts


class Combination(OfParts):
    """A kernel that is made of others; a subclass says how.

    Args:
        kernels: They are.
        name: Name of the layer.
    """

    def __init__(self, kernels: Sequence[Kernel], name: str | None = None, **kwargs: Any):
        for kernel in kernels:
            check_kernel(kernel)
        super().__init__(name=name, **kwargs)
        self.kernels = list(kernels)

    def build(self, input_shape: Any) -> None:
        for kernel in self.kernels:
            if not kernel.built:
                kernel.build(input_shape)
        self.built = True

    def check(self, x: Any, rows: int | None = None) -> None:
        for kernel in self.kernels:
            kernel.check(x, rows)
        self.built = True

    def check_gradient(self, x: Any) -> None:
        for kernel in self.kernels:
            kernel.check_gradient(x)

    def check_shapes(self, name: str, x: Any) -> None:
        for kernel in self.kernels:
            kernel.check_shapes(name, x)

    def check_codes(self, name: str, x: Any) -> None:
        for kernel in self.kernels:
            kernel.check_codes(name, x)

    def pair_flops(self, x: Any) -> float:
        return sum(kernel.pair_flops(x) for kernel in self.kernels)

    def prediction_cost(self, anchors: int, targets: int) -> dict[str, float]:
        costs = [kernel.prediction_cost(anchors, targets) for kernel in self.kernels]
        forms = ("dual", "primal") if self.has_features else ("dual",)
        return {
            form: sum(cost[form] for cost in costs)
            for form in forms
            if all(form in cost for cost in costs)
        }

    def architecture(self) -> str:
        parts = [kernel.architecture() for kernel in self.kernels]
        return digest(type(self).__qualname__, *self._settings(), *parts)

    def _settings(self) -> tuple[Any, ...]:
        """Return what values depend on besides kernels and variables."""
        return ()

    def adapt(self, x: Any) -> None:
        """Find from rows what depends on them; see `ClosedForm.adapt`."""
        for kernel in self.kernels:
            kernel.adapt(x)

    def parts(self) -> list[Any]:
        return list(self.kernels)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        with ties.writing(self):
            return {**config, "kernels": [ties.written(part) for part in self.kernels]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        with ties.reading():
            config["kernels"] = [ties.read(part) for part in config["kernels"]]
        return cls(**config)


class OfSeveral(Combination):
    """A kernel whose values are made of the values of others, entry by entry.

    Args:
        kernels: A list of them, at least one.
        name: Name of the layer.
    """

    def __init__(self, kernels: Any, name: str | None = None, **kwargs: Any):
        if not isinstance(kernels, list | tuple) or not kernels:
            raise TypeError(
                "`kernels` must be a list of kernels, at least one. "
                f"Received: kernels={kernels!r}"
            )
        super().__init__(kernels, name, **kwargs)

    @abc.abstractmethod
    def _joined(self, parts: list[tf.Tensor]) -> tf.Tensor:
        """Return the values, of those of the kernels."""

    def gram(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        return self._joined(widened([kernel.gram(x, dtype) for kernel in self.kernels]))

    def cross(self, x1: Any, x2: Any, dtype: str | None = None) -> tf.Tensor:
        parts = [kernel.cross(x1, x2, dtype) for kernel in self.kernels]
        return self._joined(widened(parts))

    def diag(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        return self._joined(widened([kernel.diag(x, dtype) for kernel in self.kernels]))


class OfOne(Combination):
    """A kernel that is made of one other.

    Args:
        kernel: It is.
        name: Name of the layer.
    """

    def __init__(self, kernel: Kernel, name: str | None = None, **kwargs: Any):
        super().__init__([kernel], name, **kwargs)

    @property
    def kernel(self) -> Kernel:
        """The other."""
        one: Kernel = self.kernels[0]
        return one

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        (config["kernel"],) = config.pop("kernels")
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        with ties.reading():
            config["kernel"] = ties.read(config["kernel"])
        return cls(**config)


def check_kernel(kernel: Any) -> None:
    """Refuse what is no kernel, or has a block for a pair of rows.

    Raises:
        TypeError: Then.
        ValueError: For an NTK of `outputs="full"`.
    """
    if not isinstance(kernel, Kernel):
        raise TypeError(
            "Kernels are added, multiplied and wrapped with kernels of "
            f"`keras_kare.kernels`. Received: {kernel!r} of type {type(kernel).__name__}"
        )
    if getattr(kernel, "outputs", None) == "full":
        raise ValueError(
            "Kernels of one value a pair of rows can be combined; an NTK of "
            '`outputs="full"` has a block. Use `outputs="sum"` or `outputs="trace"`.'
        )


def widened(parts: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Return arrays in the widest of their types."""
    dtype = "float64" if any(part.dtype == tf.float64 for part in parts) else parts[0].dtype
    return [tf.cast(part, dtype) for part in parts]

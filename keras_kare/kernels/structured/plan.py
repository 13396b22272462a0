"""Which variables go which road, and what each costs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import keras

from keras_kare.kernels.factors import Cost


@dataclass(frozen=True)
class PlannedShare:
    """The cost of one group of variables.

    Attributes:
        variables: The group.
        cost: Counted from shapes.
        why: Why it takes the plain Jacobian, in a word or two; empty where it does not.
    """

    variables: tuple[keras.Variable, ...]
    cost: Cost
    why: str


@dataclass(frozen=True, eq=False)
class Plan:
    """The roads that variables go.

    Attributes:
        variables: Those that features are derivatives by, in the network's order.
        structured: Variables whose share comes from their layer's rule.
        jacobian: Variables whose share comes from the plain Jacobian.
        forward_mode: Whether TensorFlow can differentiate the network forwards, which
            it cannot through loops.
        vectorizes: Whether TensorFlow can compute the plain Jacobian of all rows at
            once (`pfor`), which it cannot through grouped convolutions on a CPU.
        loops: Whether it has loops or branches, so that the gradients of several outputs
            go back through them one after another.
        undifferentiable: Operations through which TensorFlow cannot differentiate kernel
            values; these themselves are exact.
        constant: Whether the derivative of kernel values by all these variables is zero,
            whatever their values: training changes nothing.
        outputs: Number of outputs of the network.
        shares: What each group of variables costs.
        footprint: Bytes that the forward and the backward pass hold, a row.
        origin: The plan of another network of the same architecture that this is a copy
            of. What was traced for one serves the other.
    """

    variables: tuple[keras.Variable, ...]
    structured: tuple[keras.Variable, ...]
    jacobian: tuple[keras.Variable, ...]
    forward_mode: bool = True
    vectorizes: bool = True
    loops: bool = False
    undifferentiable: tuple[str, ...] = ()
    constant: bool = False
    outputs: int = 1
    shares: tuple[PlannedShare, ...] = ()
    footprint: float = 0.0
    origin: Plan | None = None
    _ids: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ids", frozenset(id(v) for v in self.structured))

    def of(
        self, variables: Sequence[keras.Variable], others: Sequence[keras.Variable]
    ) -> Plan:
        """Return this plan for a network with `others` in the places of `variables`."""
        place = {id(v): other for v, other in zip(variables, others, strict=True)}

        def moved(group: tuple[keras.Variable, ...]) -> tuple[keras.Variable, ...]:
            return tuple(place[id(v)] for v in group)

        return replace(
            self,
            variables=moved(self.variables),
            structured=moved(self.structured),
            jacobian=moved(self.jacobian),
            shares=tuple(replace(s, variables=moved(s.variables)) for s in self.shares),
            origin=self.origin or self,
        )

    def wanted(self, layer: keras.layers.Layer) -> bool:
        """Tell whether the layer holds a structured variable."""
        return holds(layer, self._ids)


def holds(layer: keras.layers.Layer, ids: Collection[int]) -> bool:
    """Tell whether a layer has one of these trainable variables."""
    return any(id(v) in ids for v in layer.trainable_variables)

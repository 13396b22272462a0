"""Which plan a network has now: made, known, or that of another of its architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from keras_kare.kernels.identity import Identity
from keras_kare.kernels.structured.chosen import Places
from keras_kare.kernels.structured.plan import Plan
from keras_kare.kernels.structured.planning import make_plan
from keras_kare.kernels.structured.reasons import warn_of_fallback, warn_of_quantized
from keras_kare.kernels.structured.registry import version
from keras_kare.kernels.structured.synthetic import described
from keras_kare.kernels.structured.untouched import aside
from keras_kare.kernels.traces import Runtime


@dataclass(frozen=True)
class Plans:
    """The plans of a network, one for each set of variables that train.

    Attributes:
        runtime: Keeps them.
        identity: What the network is.
        network: The network.
        outputs: As in `NTK`.
        method: As in `NTK`.
        places: Of the layers that the kernel is of; `None` for all.
    """

    runtime: Runtime
    identity: Identity
    network: keras.Model
    outputs: str
    method: str
    places: Places | None

    def plan(self, x: Any) -> Plan:
        """Return the plan for the network as it is, and the variables that train now."""
        runtime = self.runtime
        if self._is_new() or self._key() not in runtime.plans:
            runtime.pool(self.identity.common)
            plan = self._common_plan(x) or self._make_plan(x)
            self._is_new()  # planning may have built layers,
            runtime.plans[self._key()] = plan  # and made variables
            warn_of_quantized(self.network)
            runtime.pool(self.identity.common)
            if runtime.pooled:
                variables = list(self.network.trainable_variables)
                runtime.functions.setdefault(self._shape(x), (plan, variables))
        return runtime.plans[self._key()]

    def known(self) -> Plan | None:
        """Return the plan for the variables that train now, if it has been made."""
        return self.runtime.plans.get(self._key())

    def architecture(self) -> str:
        """Return a hash of what the kernel is, whatever its variables hold."""
        part = "" if self.places is None else f"{self.places} "
        return f"{self.outputs} {part}{self.identity.digest}"

    def _make_plan(self, x: Any) -> Plan:
        def make() -> Plan:
            return make_plan(self.network, x, self.method, self.outputs, self.places)

        plan: Plan = aside(make)
        return plan

    def _common_plan(self, x: Any) -> Plan | None:
        """Return the plan of a network of the same architecture, if there is one."""
        if not self.runtime.pooled or self._shape(x) not in self.runtime.functions:
            return None
        plan, variables = self.runtime.functions[self._shape(x)]
        plan = plan.of(variables, self.network.trainable_variables)
        if self.method != "jacobian":
            warn_of_fallback(plan)
        return plan

    def _shape(self, x: Any) -> str:
        return f"plan {self.method} {described(x)!r}"

    def _is_new(self) -> bool:
        architecture = f"{self.architecture()} {version()}"
        return self.runtime.is_new(architecture, self.network.variables)

    def _key(self) -> tuple[int, ...]:
        return tuple(id(v) for v in self.network.trainable_variables)

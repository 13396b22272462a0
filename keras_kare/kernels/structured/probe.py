"""Finding out, once, which variables a structured path may serve.

Capturing layers can be wrong in silence: a kernel also used outside its layer
(tied weights), rows that were folded into another axis, layers inside control
flow or rematerialisation. So every plan is verified before it is used. On a few
rows, at *perturbed* weights (so that zero initialisation hides nothing), the
structured `Jᵀ v` of every variable is compared with one plain gradient. A variable
that does not agree goes the way of the plain Jacobian.

What has no NTK at all is refused (`refusals.py`).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare.kernels.factors import Cost
from keras_kare.kernels.jacobian import outputs_of
from keras_kare.kernels.memory import footprint
from keras_kare.kernels.structured.capture import Recorder, recording
from keras_kare.kernels.structured.features import Plan, PlannedShare, shares
from keras_kare.kernels.structured.refusals import (
    refuse_constant_sum,
    refuse_coupled,
    trace_and_run,
)

ROWS = 4
LOOPS = ("While", "StatelessWhile", "If", "StatelessIf", "Case", "StatelessCase")


def make_plan(network: keras.Model, x: Any, method: str, outputs: str) -> Plan:
    """Verify the roads on the rows `x` (at least two, concrete) and choose.

    Raises:
        ValueError: If the network has no trainable variable that its outputs
            depend on, rows that interact or outputs that are random, or, for
            `outputs="sum"`, summed outputs that do not depend on the variables.
    """
    variables = list(network.trainable_variables)
    if not variables:
        raise ValueError(
            f"`network` has no trainable variable, so its NTK is zero. Set "
            "`trainable = True` on the layers that belong to the kernel. "
            f"Received: network={network.name!r}"
        )
    x = keras.tree.map_structure(tf.convert_to_tensor, x)
    rng = np.random.default_rng(0)
    values = [_perturbed(v, rng) for v in variables]
    tolerance = _tolerance(network)
    found = _Probe(network, variables, method == "jacobian", outputs, rng).run(x, values)
    refuse_coupled(network, x, variables, values, found.f, tolerance)

    alive = found.alive
    if not alive:
        raise ValueError(
            "The outputs of `network` depend on none of its trainable variables. "
            f"Received: network={network.name!r}"
        )
    if outputs == "sum" and found.f.shape[1] > 1:
        refuse_constant_sum(found.summed, found.plain, tolerance)
    largest = max((_size(g) for g in found.plain if g is not None), default=0.0)
    least = max(1e-3, tolerance) * largest
    served = [
        i for i in alive if _agrees(found.plain[i], found.structured[i], tolerance, least)
    ]
    rest = [i for i in alive if i not in served]
    plan = Plan(
        structured=tuple(variables[i] for i in served),
        jacobian=tuple(variables[i] for i in rest),
        refused=tuple(variables[i] for i in rest if found.structured[i] is not None),
        forward_mode=not found.loops,
        vectorizes=not found.grouped,
        outputs=found.f.shape[1],
        shares=_shares(variables, served, rest, found),
        footprint=found.footprint,
    )
    if method != "jacobian":
        _warn_of_fallback(plan)
    return plan


def _shares(
    variables: list[keras.Variable], served: list[int], rest: list[int], found: _Found
) -> tuple[PlannedShare, ...]:
    """What each group costs, in the order in which the network meets them."""
    ids = {id(variables[i]) for i in served}
    planned = [
        PlannedShare(tuple(kept), cost, fallback=False)
        for group, cost in found.costs
        if (kept := [v for v in group if id(v) in ids])
    ]
    for i in rest:
        size = float(found.count * math.prod(variables[i].shape))
        # Every output of every row goes back through the whole batch.
        pair = found.count * found.footprint / tf.as_dtype(variables[i].dtype).size
        cost = Cost("jacobian", 0.0, 2.0 * size, size, pair)
        planned.append(PlannedShare((variables[i],), cost, fallback=True))
    return tuple(planned)


def pick_rows(x: Any) -> Any:
    """A few rows to verify a plan on: of `x`, or made up where `x` is symbolic."""
    rng = np.random.default_rng(1)
    if hasattr(x, "graph"):  # a symbolic tensor: only its shape and type are known
        shape = (ROWS, *(4 if d is None else d for d in x.shape[1:]))
        made = rng.normal(size=shape) if x.dtype.is_floating else np.zeros(shape)
        return made.astype(x.dtype.as_numpy_dtype)
    x = tf.convert_to_tensor(x)
    count = int(x.shape[0])
    picked = np.linspace(0, count - 1, max(2, min(ROWS, count))).astype(int)
    return tf.gather(x, picked)


class _Found:
    """What one probe saw; all values are arrays at the perturbed weights."""

    f: np.ndarray
    alive: list[int]
    loops: bool
    grouped: bool
    costs: list[tuple[list[keras.Variable], Cost]]
    count: int
    footprint: float
    plain: list[np.ndarray | None]
    summed: list[np.ndarray | None]
    structured: list[np.ndarray | None]


class _Probe:
    """One traced pass: outputs, plain gradients, structured gradients."""

    def __init__(
        self,
        network: keras.Model,
        variables: list[keras.Variable],
        plain_only: bool,
        outputs: str,
        rng: np.random.Generator,
    ):
        self.network = network
        self.variables = variables
        self.plain_only = plain_only
        self.outputs = outputs
        self.rng = rng

    def run(self, x: Any, values: list[tf.Tensor]) -> _Found:
        self.moments_elsewhere = False
        rows = int(keras.tree.flatten(x)[0].shape[0])
        v = tf.constant(self.rng.normal(size=rows))
        seen = trace_and_run(self._trace, x, values, v)
        if self.moments_elsewhere:
            warnings.warn(
                f"{self.network.name!r} uses `tf.nn.moments` (or `keras.ops.moments`) "
                "outside the layers that keras_kare corrects. TensorFlow's second "
                "derivative of it is wrong, so KARE's gradient through it will be off. "
                "Use `keras.ops.mean` and `keras.ops.var`, or register a rule with "
                "`kk.kernels.register_rule`.",
                stacklevel=2,
            )
        found = _Found()
        found.alive, found.loops, found.grouped = self.alive, self.loops, self.grouped
        found.costs, found.count, found.footprint = self.costs, self.count, self.footprint
        found.f = seen["f"].numpy()
        for name in ("plain", "summed", "structured"):
            by_index = {int(i): t.numpy() for i, t in seen[name].items()}
            setattr(found, name, [by_index.get(i) for i in range(len(values))])
        return found

    def _trace(self, x: Any, values: list[tf.Tensor], v: tf.Tensor) -> dict[str, Any]:
        mapping = list(zip(self.variables, values, strict=True))
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(values)
            recorder = Recorder(tape, self._wanted)
            with keras.StatelessScope(state_mapping=mapping), recording(recorder):
                f = outputs_of(self.network, x)
            weights = tf.constant(self.rng.normal(size=(1, f.shape[1])), f.dtype)
            target = tf.reduce_sum(f * weights)
            weighted = tf.reduce_sum(f * weights * tf.cast(v, f.dtype)[:, None])
            summed = tf.reduce_sum(f * tf.cast(v, f.dtype)[:, None])
        self.moments_elsewhere = _stops_mean(recorder.graph)
        self.alive = self._reach_outputs(x)
        self.loops = any(op.type in LOOPS for op in recorder.graph.get_operations())
        self.grouped = any(_is_grouped(op) for op in recorder.graph.get_operations())
        plain = tape.gradient(weighted, values)
        sums = tape.gradient(summed, values)
        backward_from = len(recorder.graph.get_operations())
        structured = self._structured(recorder, tape, target, f, v)
        unclaimed = [
            tf.convert_to_tensor(g)
            for i, g in enumerate(plain)
            if g is not None and str(i) not in structured
        ]
        self.footprint = footprint(
            recorder.graph.get_operations(),
            keras.tree.flatten(x),
            self.parts + unclaimed,
            backward_from,
            self.count,
            f.shape[0],
        )
        return {
            "f": f,
            "plain": _without_none(plain),
            "summed": _without_none(sums),
            "structured": structured,
        }

    def _reach_outputs(self, x: Any) -> list[int]:
        """Numbers of the variables that the outputs depend on, by any road.

        Asked of the variables themselves: the perturbed values that stand in for them
        are out of sight inside a custom gradient.
        """
        sources = [variable.value for variable in self.variables]
        with tf.GradientTape() as tape:
            f = outputs_of(self.network, x)
        gradients = tape.gradient(f, sources)
        return [i for i, g in enumerate(gradients) if g is not None]

    def _wanted(self, layer: keras.layers.Layer) -> bool:
        return not self.plain_only and bool(layer.trainable_variables)

    def _structured(
        self, recorder: Recorder, tape: tf.GradientTape, target: Any, f: Any, v: Any
    ) -> dict[str, tf.Tensor]:
        """`Jᵀ v` by the rules; a variable claimed by two layers is left out."""
        index = {id(variable): i for i, variable in enumerate(self.variables)}
        sites = recorder.sites
        gradients = tape.gradient(target, [site.h for site in sites])
        unreachable = {
            id(variable)
            for site, g in zip(sites, gradients, strict=True)
            for variable in site.variables
            # No gradient: inside a custom gradient. Other rows: an axis moved or folded.
            if g is None or site.h.shape[0] != f.shape[0]
        }
        known = {
            id(site.h): tf.expand_dims(g, axis=1)
            for site, g in zip(sites, gradients, strict=True)
            if g is not None
        }

        def serves(variable: keras.Variable) -> bool:
            return id(variable) in index and id(variable) not in unreachable

        found: dict[str, tf.Tensor] = {}
        claimed: set[str] = set()
        self.count = 1 if self.outputs == "sum" else f.shape[1]
        self.costs, self.parts = [], []
        for variables, factor in shares(sites, known, serves, f.dtype):
            self.costs.append((variables, factor.cost(self.count)))
            self.parts.extend(factor.condensed().parts())
            parts = factor.vjp(tf.cast(v, f.dtype)[:, None])
            for variable, part in zip(variables, parts, strict=True):
                key = str(index[id(variable)])
                if key in claimed:
                    found.pop(key, None)
                    continue
                claimed.add(key)
                found[key] = tf.reshape(part, variable.shape)
        return found


def _perturbed(variable: keras.Variable, rng: np.random.Generator) -> tf.Tensor:
    value = np.asarray(variable.value, "float64")
    fan_in = max(1, math.prod(variable.shape[:-1]))
    scale = max(0.5 * float(np.sqrt(np.mean(value**2))), 0.1 / math.sqrt(fan_in))
    noisy = value + scale * rng.normal(size=value.shape)
    return tf.cast(tf.constant(noisy), variable.dtype)


def _tolerance(network: keras.Model) -> float:
    """Relative error that rounding may cause in one backward pass."""
    return {"float64": 1e-9, "float32": 1e-3}.get(network.compute_dtype, 0.1)


def _agrees(plain: Any, structured: Any, tolerance: float, least: float) -> bool:
    """Whether two gradients agree; those below `least` count as if of that size.

    Some gradients are zero but for rounding: that of attention's key bias, say.
    """
    if plain is None or structured is None:
        return False
    error = _size(structured.astype("float64") - plain.astype("float64"))
    return error <= tolerance * max(_size(plain), least)


def _size(gradient: np.ndarray) -> float:
    return float(np.max(np.abs(gradient.astype("float64")), initial=0.0))


def _without_none(gradients: list[Any]) -> dict[str, tf.Tensor]:
    return {
        str(i): tf.convert_to_tensor(g) for i, g in enumerate(gradients) if g is not None
    }


def _is_grouped(op: Any) -> bool:
    """Whether this is a convolution over groups of channels.

    TensorFlow cannot vectorise it on a CPU, where Keras compiles it by XLA.
    """
    if op.type.endswith("PartitionedCall"):
        compiled = op.node_def.attr.get("_XlaMustCompile")
        return compiled is not None and bool(compiled.b)
    if op.type not in ("Conv2D", "Conv3D"):
        return False
    first = op.get_attr("data_format").decode().startswith("NC")
    channels = op.inputs[0].shape[1 if first else -1]
    return channels != op.inputs[1].shape[-2]


def _stops_mean(graph: Any) -> bool:
    """Whether `tf.nn.moments`, which stops the gradient of its mean, was traced."""
    operations = graph.get_operations()
    return any(op.type == "StopGradient" and "moments" in op.name for op in operations)


def _warn_of_fallback(plan: Plan) -> None:
    if not plan.jacobian:
        return
    names = ", ".join(v.path for v in plan.jacobian)
    refused = {id(v) for v in plan.refused}
    reason = (
        "no layer rule serves them"
        if not refused
        else "no layer rule serves them, or they reach the outputs by another road "
        "than their layer (tied weights, control flow)"
    )
    warnings.warn(
        "The NTK takes the plain Jacobian, exact but slow, for these variables, since "
        f"{reason}: {names}. `kk.kernels.register_rule` teaches a layer; "
        '`method="jacobian"` asks for the Jacobian without this warning.',
        stacklevel=2,
    )

"""Words for plans, and for warnings: why the plain Jacobian, what quantisation leaves."""

from __future__ import annotations

import math
import warnings

import keras

from keras_kare.kernels.structured.plan import Plan
from keras_kare.kernels.structured.untouched import walk

NO_RULE = "no layer rule"
OTHER_ROAD = "another road"
NO_ROWS = "rows not first"
WRONG_RULE = "rule disagrees"
UNTRIED = "rule not tried"


REASONS = {
    NO_RULE: "no layer rule serves them",
    OTHER_ROAD: "they reach the outputs by another road than their layer's rule (tied "
    "weights, control flow, compiled functions, custom gradients)",
    NO_ROWS: "rows are not the first axis where their layer is called",
    WRONG_RULE: "their layer's rule does not give their gradients",
    UNTRIED: "no made-up row has shown whether the rule that you registered is right",
}
"""What a plan's words for its fallbacks mean."""


def warn_of_fallback(plan: Plan) -> None:
    """Announce what takes the plain Jacobian, and why."""
    groups: dict[str, list[str]] = {}
    for share in plan.shares:
        if share.why:
            groups.setdefault(share.why, []).extend(v.path for v in share.variables)
    if not groups:
        return
    parts = [f"{', '.join(names)} ({REASONS[why]})" for why, names in groups.items()]
    warnings.warn(
        "The NTK takes the plain Jacobian, exact but slow, for these variables: "
        f"{'; '.join(parts)}. `kk.kernels.register_rule` teaches a layer; "
        '`method="jacobian"` asks for the Jacobian without this warning.',
        stacklevel=2,
    )


def warn_of_quantized(network: keras.Model) -> None:
    """Announce that the kernels of quantised layers are no part of the NTK."""
    layers = [layer for layer in walk(network) if getattr(layer, "quantization_mode", None)]
    whole = {
        id(v): v
        for layer in layers
        for v in layer.weights
        if not v.trainable and "int" in v.dtype
    }
    if not whole:
        return  # in float8, kernels stay floats
    left = sum(math.prod(v.shape) for v in network.trainable_variables)
    lost = sum(math.prod(v.shape) for v in whole.values())
    names = ", ".join(layer.name for layer in layers[:3]) + ", …" * (len(layers) > 3)
    warnings.warn(
        f"The kernels of quantised layers ({names}) do not train, and are no part of the "
        f"NTK: it is that of {left} of {left + lost} parameters. Take the kernel of the "
        "network as it was before `quantize`.",
        stacklevel=2,
    )

"""Networks that have no neural tangent kernel, refused before any long work."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare.kernels.structured.capture import AsCalled, Unruled, run
from keras_kare.kernels.structured.differentiability import undifferentiable
from keras_kare.kernels.structured.registry import is_own, rule_for
from keras_kare.kernels.structured.synthetic import ROWS
from keras_kare.kernels.structured.untouched import untouched, walk

COUPLED = (
    "The outputs of `network` for one row depend on the other rows of the "
    "batch, or are random, even with `training=False`. Such a network has no "
    "neural tangent kernel. Look for statistics over the batch axis, a "
    "`training=True` in a layer's call, or an axis swapped with the rows. "
    "Received: network={name!r}"
)

_RANDOM = (
    "Multinomial",
    "Parameterized",
    "Random",
    "Rng",
    "StatefulRandom",
    "StatefulStandardNormal",
    "StatefulTruncatedNormal",
    "StatefulUniform",
    "TruncatedNormal",
)
"""How the names of operations begin that give other numbers at each call."""


def refuse_stateful(network: keras.Model) -> None:
    """Refuse outputs that depend on what the network was called with before."""
    found = [layer.name for layer in walk(network) if getattr(layer, "stateful", False)]
    if found:
        raise ValueError(
            f"Layers of {network.name!r} carry states from one batch to the next "
            f"({', '.join(found)}), so that it has no neural tangent kernel. Make them "
            f"with `stateful=False`. Received: network={network.name!r}"
        )


def refuse_random(
    network: keras.Model, needed: Sequence[tf.Operation], in_bodies: Collection[str]
) -> None:
    """Refuse operations that draw random numbers, where the outputs need them.

    Those of a seed that is a constant give the same at each call, and are let through.

    Args:
        network: The network, for the message.
        needed: The operations.
        in_bodies: Kinds of the operations in the bodies of functions and loops.
    """
    if any(kind.startswith(_RANDOM) for kind in in_bodies):
        raise ValueError(COUPLED.format(name=network.name))
    for op in needed:
        drawn = op.type.startswith(_RANDOM)
        if op.type.startswith("StatelessRandom"):
            drawn = _reads_a_variable(op)
        if drawn:
            raise ValueError(COUPLED.format(name=network.name))


def refuse_without_gradient(
    network: keras.Model,
    operations: Sequence[tf.Operation],
    sources: Sequence[tf.Tensor],
    f: tf.Tensor,
) -> None:
    """Refuse outputs made of anything whose first derivative TensorFlow lacks."""
    found = [
        line
        for line in undifferentiable(operations, sources, [f])
        if not line.startswith("StopGradient")  # in `tf.nn.moments`: right but once
    ]
    if found:
        raise ValueError(
            f"{network.name!r} has no neural tangent kernel that TensorFlow could compute: "
            f"it lacks derivatives, or has wrong ones, of {'; '.join(found)}. Replace "
            f"these operations by others. Received: network={network.name!r}"
        )


def second_derivative(lacking: Sequence[str]) -> None:
    """Refuse to differentiate kernel values where TensorFlow would be wrong.

    Raises:
        ValueError: If `lacking` names any operation.
    """
    if lacking:
        raise ValueError(
            "Kernel values of this network are exact, but TensorFlow cannot differentiate "
            "them: KARE's gradient would miss a part, or be wrong, because of "
            f"{'; '.join(lacking)}. Replace these operations by others "
            "(`keras.ops.moments` by `keras.ops.mean` and `keras.ops.var`; linear ones by "
            "a product with a matrix), or register a rule with "
            "`kk.kernels.register_rule`. Without training, `fit_head` solves the kernel "
            "machine of the network as it is."
        )


def _reads_a_variable(op: tf.Operation) -> bool:
    seen, waiting = set(), [op]
    while waiting:
        op = waiting.pop()
        if op.type == "ReadVariableOp":
            return True
        if op not in seen:
            seen.add(op)
            waiting.extend(t.op for t in op.inputs)
    return False


def refuse_coupled(
    network: keras.Model,
    outputs: Callable[[Any], np.ndarray],
    x: Any,
    f: np.ndarray,
    others: Any,
    tolerance: float,
) -> None:
    """Refuse rows that change when the others do, or with where they stand.

    Args:
        network: The network, for the message.
        outputs: Its outputs for `ROWS` rows.
        x: Rows that must keep their outputs,
        f: which are these, `(ROWS, c)`.
        others: Rows that are put beside them, in other places.
        tolerance: Relative error of rounding.
    """
    cut = ROWS // 2
    last = outputs(_joined(others, x, slice(cut, None), slice(None, cut)))
    first = outputs(_joined(x, others, slice(cut, None), slice(None, cut)))
    pairs = [(last[-cut:], f[:cut]), (first[:-cut], f[cut:])]
    scale = float(np.max(np.abs(f[np.isfinite(f)]), initial=0.0)) or 1.0
    for a, b in pairs:
        known = np.isfinite(a) & np.isfinite(b)
        if float(np.max(np.abs(a - b)[known], initial=0.0)) > 0.1 * tolerance * scale:
            raise ValueError(COUPLED.format(name=network.name))


def _joined(first: Any, second: Any, some: slice, others: slice) -> Any:
    return keras.tree.map_structure(
        lambda a, b: tf.constant(
            # in NumPy: TensorFlow prepares each operation that it first runs
            np.concatenate([np.asarray(a)[some], np.asarray(b)[others]])
        ),
        first,
        second,
    )


def refuse_wrong_rules(
    network: keras.Model, plain: np.ndarray, ruled: np.ndarray, tolerance: float
) -> None:
    """Refuse rules that do not compute what the layers compute."""
    known = np.isfinite(plain) & np.isfinite(ruled)
    scale = float(np.max(np.abs(plain[known]), initial=0.0)) or 1.0
    if float(np.max(np.abs(plain - ruled)[known], initial=0.0)) > 0.1 * tolerance * scale:
        raise ValueError(
            f"With layer rules, {network.name!r} computes other outputs than without. A "
            "rule's `call` must compute what its layer's `call` does: mend the rule that "
            f'you registered, or use `method="jacobian"`. Received: {_users_rules(network)}'
        )


def _users_rules(network: keras.Model) -> str:
    """Name the rules of the network that are not this library's."""
    rules = {layer.name: rule_for(layer) for layer in walk(network)}
    return ", ".join(
        f"{type(rule).__name__} of layer {name!r}"
        for name, rule in rules.items()
        if rule is not None and not is_own(rule)
    )


def refuse_stale_functions(network: keras.Model, x: Any, tolerance: float) -> None:
    """Refuse `tf.function`s that were traced for something else than their Python says.

    A kernel is that of the network as its Python is. A `tf.function` that was traced
    before its layers had variables has the first values of these in it for ever (as Keras
    does where a functional model is made of layers that call one), and one that was traced
    before an attribute changed has the old one.

    Args:
        network: The network.
        x: Some rows.
        tolerance: Relative error of rounding.
    """
    with untouched(network):
        plain = np.asarray(run(network, x, Unruled()), "float64")
        called = np.asarray(run(network, x, AsCalled()), "float64")
    known = np.isfinite(plain) & np.isfinite(called)
    scale = float(np.max(np.abs(plain[known]), initial=0.0)) or 1.0
    if float(np.max(np.abs(plain - called)[known], initial=0.0)) > 0.1 * tolerance * scale:
        raise ValueError(
            f"{network.name!r} computes something else than its layers' Python says: it "
            "has a `tf.function` that was traced before its layers had variables, as in a "
            "functional model, or before an attribute changed, and that keeps what it "
            "found then. Build the layers before they meet symbolic inputs, leave out the "
            "`tf.function` (Keras compiles the whole network), or make the network anew. "
            f"Received: network={network.name!r}"
        )


def refuse_constant_sum(summed: float, mixed: float, tolerance: float) -> None:
    """Refuse gradients of the summed outputs that vanish beside those of a random mix."""
    if mixed > 0.0 and summed <= 0.01 * tolerance * mixed:
        raise ValueError(
            "The summed outputs of `network` are constant (a softmax, it seems), so its "
            '`outputs="sum"` kernel is zero. Leave out its last activation, or use '
            '`kk.kernels.NTK(network, outputs="trace")`.'
        )

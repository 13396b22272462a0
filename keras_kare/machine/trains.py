"""Which variables of a kernel train: a head belongs to those, and not to others."""

from __future__ import annotations

from typing import Any

from keras_kare._sentences import listed
from keras_kare.kernels.kernel import Kernel

OTHERS = (
    "The head was solved for another kernel: {which} (`trainable` was set, a layer "
    "was adapted, or a file was loaded into a network of other settings)."
)


def trains(kernel: Kernel) -> str:
    """Write which of a kernel's variables train, as ones and zeros."""
    return "".join("1" if v.trainable else "0" for v in kernel.weights)


def changed(facts: dict[str, Any], kernel: Kernel) -> str:
    """Say which variables train now and did not when a head was solved, or the reverse.

    Args:
        facts: Of the solution.
        kernel: The kernel as it is.

    Returns:
        A sentence; empty where the same train, or nothing is known.
    """
    before, now = facts.get("trains"), trains(kernel)
    if before is None or before == now:
        return ""
    if len(before) != len(now):
        which = f"its network has {len(now)} variables now, and had {len(before)}"
        return OTHERS.format(which=which)
    parts = []
    for bit, words in (("1", "now train"), ("0", "no longer train")):
        paths = [
            v.path
            for v, a, b in zip(kernel.weights, before, now, strict=True)
            if a != b == bit
        ]
        if paths:
            parts.append(f"{listed(paths)} {words}")
    return OTHERS.format(which=", and ".join(parts))

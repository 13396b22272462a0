"""What `model.summary()` tells of a kernel and its head, beside the network's layers."""

from __future__ import annotations

from typing import Any


def described(model: Any) -> list[str]:
    """Return lines on the kernel and the head of a `KAREModel`."""
    kernel, head = model.kernel, model.head
    count = sum(int(v.shape.num_elements() or 0) for v in kernel.trainable_variables)
    told = f"Kernel: {type(kernel).__name__}"
    if (outputs := getattr(kernel, "outputs", None)) is not None:
        told += f', outputs="{outputs}"'
    return [f"{told}, of {count:,} weights that train", f"Head: {_of_head(head)}"]


def _of_head(head: Any) -> str:
    report = head.report
    if not report:
        return f"not solved yet, ridge={head.ridge!r}"
    told = f"solved on {report['rows']:,} rows by {report['solver']}"
    told += f", a relative ridge of {report['relative_ridge']:.3g} ({report['chosen_by']})"
    if head.classes is not None:
        told += f", {len(head.classes)} classes"
    columns = head.compute_output_shape((None,))[1]
    return f"{told}, outputs (None, {columns})"

"""Why variables take the plain Jacobian: words for plans, and for warnings."""

from __future__ import annotations

import warnings

from keras_kare.kernels.structured.plan import Plan

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

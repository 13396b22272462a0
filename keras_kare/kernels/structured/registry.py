"""Which rule goes with which layer type."""

from __future__ import annotations

from typing import Any

import keras

from keras_kare.kernels.structured.rule import LayerRule

_RULES: dict[type, LayerRule] = {}


def register_rule(layer_type: type, rule: LayerRule) -> None:
    """Use `rule` for layers whose type is exactly `layer_type`.

    Args:
        layer_type: A class derived from `keras.layers.Layer`.
        rule: A `keras_kare.kernels.LayerRule`. Replaces an earlier rule for the
            same type; kernels made before are planned anew.

    Raises:
        TypeError: If `layer_type` is no layer class, or `rule` no rule.

    Example: see `keras_kare.kernels.LayerRule`.
    """
    if not (isinstance(layer_type, type) and issubclass(layer_type, keras.layers.Layer)):
        raise TypeError(
            "`layer_type` must be a class derived from `keras.layers.Layer`. "
            f"Received: layer_type={layer_type!r}"
        )
    if not isinstance(rule, LayerRule):
        raise TypeError(
            "`rule` must be an instance of `keras_kare.kernels.LayerRule` (an "
            f"instance, not the class). Received: rule={rule!r}"
        )
    _RULES[layer_type] = rule


def registered() -> dict[type, LayerRule]:
    """Return a copy of all rules, by layer type."""
    return dict(_RULES)


def version() -> str:
    """Return a text that is another whenever another rule is registered."""
    return " ".join(f"{kind.__name__}@{id(rule)}" for kind, rule in _RULES.items())


def is_own(rule: LayerRule) -> bool:
    """Tell whether a rule is one of this library's."""
    return type(rule).__module__.startswith(__name__.rpartition(".")[0] + ".")


def rule_for(layer: Any) -> LayerRule | None:
    """Return the rule that describes this layer, if any."""
    rule = _RULES.get(type(layer))
    if isinstance(rule, LayerRule) and rule.accepts(layer):
        return rule
    return None

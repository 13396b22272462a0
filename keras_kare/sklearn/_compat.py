"""What scikit-learn 1.6 renamed: with 1.5 the same under its old names."""

from __future__ import annotations

from typing import Any

try:
    from sklearn.utils.validation import validate_data

    ALLOW_NAN = {"ensure_all_finite": "allow-nan"}
except ImportError:
    ALLOW_NAN = {"force_all_finite": "allow-nan"}

    def validate_data(
        estimator: Any, X: Any, y: Any, reset: bool, skip_check_array: bool
    ) -> Any:
        """Check or remember the number and names of features."""
        return estimator._validate_data(
            X, y, reset=reset, cast_to_ndarray=not skip_check_array
        )


__all__ = ["ALLOW_NAN", "validate_data"]

"""Kernels whose variables are those of parts: of other kernels, or of a network."""

from __future__ import annotations

from typing import Any

from keras_kare.kernels.kernel import Kernel


class OfParts(Kernel):
    """A kernel that is built where its parts are, which files restore by themselves."""

    def get_build_config(self) -> dict[str, Any]:
        return {"built": self.built}

    def build_from_config(self, config: dict[str, Any]) -> None:
        self.built = config["built"]

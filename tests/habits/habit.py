"""A habit, and how it is run."""

from __future__ import annotations

import ast
import warnings
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_kare as kk


@dataclass(frozen=True)
class Habit:
    """What a user writes, and what comes out.

    Attributes:
        writes: Python, with the names of `names()`; the value of its last line, if that is
            an expression, is `out`.
        gives: What must hold afterwards, an expression; no warning is allowed.
        says: Instead: what an error or a warning says, a part of its text. (With `gives`,
            it is a warning, after which that must hold.)
    """

    writes: str
    gives: str = ""
    says: str = ""

    def check(self) -> None:
        """Run it, and fail where something else comes out, or nothing."""
        assert self.gives or self.says, "a habit without an outcome cannot fail"
        known = names()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                _run(self.writes, known)
            except Exception as error:  # whatever it is, it has to say the sentence
                said = str(error)
                if not self.says or self.gives or self.says not in said:
                    raise
                assert said.count("\n") < 3, f"more than a sentence: {said}"
                return
        said = "\n".join(
            str(warning.message)
            for warning in told
            if not issubclass(warning.category, DeprecationWarning)  # Python shows none
        )
        if self.says:
            assert self.says in said, f"was not told: {said!r}"
        else:
            assert not said, said
        if self.gives:
            assert eval(self.gives, known), f"{self.gives}: out={known.get('out')!r}"


def names() -> dict[str, Any]:
    """Make what habits are written with: rows, targets of each kind, a network, a model."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype("float32")
    numbers = np.sin(x[:, :1] + x[:, 1:2])
    codes = np.digitize(numbers[:, 0], [-0.4, 0.4])
    network = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, "gelu", kernel_initializer=_drawn(0)),
            keras.layers.Dense(1, kernel_initializer=_drawn(1)),
        ]
    )
    model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=0.1))
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="kare")
    return {
        "np": np,
        "keras": keras,
        "tf": tf,
        "kk": kk,
        "x": x,
        "y": numbers,  # (60, 1)
        "codes": codes,  # 0, 1, 2
        "bits": (numbers[:, 0] > 0).astype("int64"),  # 0, 1
        "words": np.array(["no", "perhaps", "yes"])[codes],
        "network": network,
        "model": model,  # compiled, its ridge a number
    }


def _drawn(seed: int) -> keras.initializers.Initializer:
    return keras.initializers.GlorotUniform(seed=seed)


def _run(source: str, known: dict[str, Any]) -> None:
    """Execute statements; the value of a last expression becomes `out`."""
    *statements, last = ast.parse(source).body
    if isinstance(last, ast.Expr):
        last = ast.Assign([ast.Name("out", ast.Store())], last.value)
    body = [ast.fix_missing_locations(node) for node in (*statements, last)]
    exec(compile(ast.Module(body, []), "<habit>", "exec"), known)

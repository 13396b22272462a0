"""Models to export: each form of head, several kinds of networks and inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import networks
import numpy as np
from keras import layers

import keras_kare as kk

ROWS = 16


def image_network() -> Any:
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(3, 3, activation="gelu"),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )


def token_network() -> Any:
    return keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(9, 3),
            layers.GlobalAveragePooling1D(),
            layers.Dense(1),
        ]
    )


@dataclass(frozen=True)
class Case:
    """A model to export: how it is made, and how exported."""

    network: Any = networks.mlp
    columns: int = 1
    outputs: str = "sum"
    head: tuple[tuple[str, Any], ...] = ()
    form: str = "primal"
    classes: tuple[str, ...] | None = None


def text_network() -> Any:
    words = layers.TextVectorization(vocabulary=["good", "bad", "fun"])
    return keras.Sequential(
        [
            keras.Input((), dtype="string"),
            words,
            layers.Embedding(words.vocabulary_size(), 3, mask_zero=True),
            layers.GlobalAveragePooling1D(),
            layers.Dense(1),
        ]
    )


def text_and_numbers() -> Any:
    """A category that is looked up, beside a number."""
    kind = keras.Input((1,), dtype="string", name="kind")
    size = keras.Input((1,), name="size")
    known = layers.StringLookup(vocabulary=["good", "bad"], output_mode="one_hot")(kind)
    h = layers.Dense(4, "gelu")(layers.Concatenate()([known, size]))
    return keras.Model({"kind": kind, "size": size}, layers.Dense(1)(h))


CASES = {
    "one target": Case(classes=("down", "up")),
    "dual": Case(columns=3, form="dual", classes=("a", "b", "c")),
    "primal of a dual": Case(columns=3, head=(("form", "dual"),), classes=("a", "b", "c")),
    "dual of a primal": Case(head=(("form", "primal"),), form="dual"),
    "trace": Case(columns=2, outputs="trace", network=networks.skip_connection),
    "images": Case(network=image_network),
    "tokens": Case(network=token_network),
    "residual": Case(head=(("residual", True),)),
    "no rows kept": Case(head=(("keep_anchors", False),), classes=("no", "yes")),
    "list of inputs": Case(network=networks.two_inputs),
    "dict of inputs": Case(network=networks.named_inputs),
    "text": Case(network=text_network, classes=("bad", "good")),
    "text, dual": Case(network=text_network, form="dual"),
    "text and numbers": Case(network=text_and_numbers),
}


def inputs_for(network: Any, rng: np.random.Generator) -> Any:
    if network.inputs[0].dtype == "string":
        return text_rows(network, rng)
    if network.inputs[0].dtype == "int32":
        return rng.integers(0, 9, size=(ROWS, 5)).astype("int32")
    x = networks.rows_for(network, ROWS, rng)
    return keras.tree.map_structure(lambda part: part.astype("float32"), x)


def text_rows(network: Any, rng: np.random.Generator) -> Any:
    """Sentences of one to five words, some of them unknown; or words beside numbers."""
    words = np.array(["good", "bad", "fun", "neither"])
    if len(network.inputs) == 2:
        size = rng.normal(size=(ROWS, 1)).astype("float32")
        return {"kind": rng.choice(words, (ROWS, 1)).astype("S"), "size": size}
    made = [" ".join(rng.choice(words, 1 + i % 5)) for i in range(ROWS)]
    return np.array([sentence.encode() for sentence in made])


def named(x: Any) -> dict[str, np.ndarray]:
    """Inputs by the names that they have in signatures."""
    if isinstance(x, dict):
        return x
    parts = x if isinstance(x, list) else [x]
    return {"inputs" if i == 0 else f"inputs_{i}": part for i, part in enumerate(parts)}


def make(case: Case) -> tuple[kk.KAREModel, Any, np.ndarray]:
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    network = case.network()
    x = inputs_for(network, rng)
    y = np.where(rng.normal(size=(ROWS, case.columns)) > 0, 1.0, -1.0).astype("float32")
    if case.classes and case.columns > 1:  # one a row
        y = 2.0 * np.eye(case.columns, dtype="float32")[np.argmax(y, axis=1)] - 1.0
    head = kk.NTKRidgeHead(**{"ridge": 0.1, **dict(case.head)})
    model = kk.KAREModel(kk.kernels.NTK(network, case.outputs), head=head)
    model.fit_head(x, y)
    return model, x, y

"""What a machine holds: arrays whose sizes are known only once it is solved."""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _text
from keras_kare._labels import Classes
from keras_kare.machine.calibration import Evidence
from keras_kare.machine.problem import Rows


class Shelf(tf.Module):
    """The variables that predictions read, where TensorFlow finds them.

    So a user's own `tf.Module` round a model can be saved by `tf.saved_model.save`.
    Keras leaves it alone: to its own files, `State.save` writes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held: list[tf.Variable] = []


class State:
    """Anchors, their targets, the dual solution, the primal weights and the constant.

    Arrays that predictions read live in `tf.Variable`s of unknown length, so that a
    traced prediction function stays valid when the head is solved again.

    Attributes:
        anchors: The inputs `X`, `(n, ...)`, in a nested structure.
        targets: Their targets, `(n, c)`; `None` where anchors are not what was solved on.
        row_weights: How often each counts, `(n,)`.
        dual: `α`, `(n, c)` float64.
        weights: `w`, one `(c, ...)` for each of the kernel's variables.
        constant: `b`, `(c,)` float64.
        facts: What is known beside arrays (choice, report, fingerprint), as JSON.
        trained: Whether the kernel has been trained on rows.
        classes: What targets stand for; `None` for numbers.
        evidence: What the machine said of rows that it had not seen.
        inverse_temperature: What scores are multiplied by, for functions that are traced;
            NaN before `calibrate`.
        shelf: Where TensorFlow finds the variables.
    """

    def __init__(self) -> None:
        self.anchors: Any = None
        self.targets: np.ndarray | None = None
        self.row_weights: np.ndarray | None = None
        self.dual: tf.Variable | None = None
        self.weights: list[tf.Variable] | None = None
        self.constant: tf.Variable | None = None
        self.facts: dict[str, Any] = {}
        self.trained = False
        self.classes: Classes | None = None
        self.evidence: Evidence | None = None
        self.inverse_temperature = tf.Variable(np.nan, trainable=False, dtype=tf.float64)
        self.shelf = Shelf()
        self._damage: str | None = None

    @property
    def solved(self) -> bool:
        """Whether there is something to predict with."""
        return "report" in self.facts

    @property
    def columns(self) -> int:
        """Number `c` of targets that are predicted; 0 before anything was solved."""
        if self.weights is not None:
            return int(self.weights[0].shape[0])
        return 0 if self.dual is None else int(self.dual.shape[1])

    def rows(self) -> Rows | None:
        """Return the rows to solve on again; `None` where they were not kept."""
        if self.anchors is None or self.targets is None:
            return None
        return Rows(values(self.anchors), self.targets, self.row_weights)

    def copy(self) -> State:
        """Return a state that reads the same variables, and may drop or replace some."""
        other = State()
        other.__dict__.update({**self.__dict__, "shelf": other.shelf})
        return other

    def read(self) -> list[tf.Variable]:
        """Return the variables that predictions read."""
        solution = (self.anchors, self.dual) if self.weights is None else self.weights
        parts = keras.tree.flatten((solution, self.constant))
        return [part for part in parts if part is not None]

    def hold(
        self, x: Any, y: np.ndarray | None = None, row_weights: np.ndarray | None = None
    ) -> None:
        """Keep anchors, and their targets if they are all that is solved on.

        An earlier solution is forgotten, but for the ridge that was chosen and whether it
        is provisional; its variables stay, for traced functions.
        """
        self.anchors = _assigned(self.anchors, x)
        self.targets, self.row_weights = y, row_weights
        kept = ("choice", "provisional")
        self.facts = {k: v for k, v in self.facts.items() if k in kept}
        self.evidence = None
        self.shelf.held = self.read()

    def drop_anchors(self) -> None:
        """Forget the rows, and the dual that belongs to them."""
        self.anchors = self.targets = self.row_weights = self.dual = None
        self.shelf.held = self.read()

    def set_dual(self, dual: np.ndarray) -> None:
        """Store `α`, `(n, c)`."""
        self.dual = _assigned(self.dual, dual)
        self.shelf.held = self.read()

    def set_weights(self, weights: list[tf.Tensor] | None) -> None:
        """Store `w`, one array a variable, or forget it."""
        self.weights = weights and _exact(self.weights, weights)
        self.shelf.held = self.read()

    def set_constant(self, constant: np.ndarray | None) -> None:
        """Store `b`, `(c,)`, or forget it."""
        before = None if self.constant is None else [self.constant]
        wanted = [] if constant is None else [tf.constant(constant, tf.float64)]
        self.constant = _exact(before, wanted)[0] if wanted else None
        self.shelf.held = self.read()

    def calibrate(self) -> bool:
        """Fit, once a solution, what scores are multiplied by; tell whether it is known."""
        if "inverse_temperature" not in self.facts and self.evidence is not None:
            factor = self.evidence.inverse_temperature()
            self.facts["inverse_temperature"] = factor
            self.facts["report"]["calibrated_by"] = self.evidence.by
        known = self.facts.get("inverse_temperature")
        if known is not None:
            self.inverse_temperature.assign(known)
        return known is not None

    def recalibrate(self, evidence: Evidence) -> None:
        """Fit what scores are multiplied by anew, on other rows."""
        self.evidence = evidence
        self.facts.pop("inverse_temperature", None)
        self.calibrate()

    def key(self) -> Any:
        """Return what a traced prediction depends on besides the values of variables."""
        parts = (self.anchors, self.dual, self.weights, self.constant)
        return repr(
            [keras.tree.map_structure(id, part) for part in parts if part is not None]
        )

    def signature(self) -> Any:
        """Return the `tf.TensorSpec`s of any number of rows such as were solved on."""
        description = self.facts["inputs"]

        def spec(i: int) -> tf.TensorSpec:
            shape, dtype = description["specs"][i]
            return tf.TensorSpec([None, *shape], dtype)

        return _filled(description["structure"], spec)

    def save(self, store: Any) -> None:
        """Write everything into a Keras variable store."""
        flat = [] if self.anchors is None else keras.tree.flatten(self.anchors)
        for i, anchor in enumerate(flat):
            array = anchor.numpy()
            if anchor.dtype == tf.string:  # files of arrays take numbers only
                array, store[f"anchor_{i}_lengths"] = _text.encoded(array)
            store[f"anchor_{i}"] = array
        if self.targets is not None:
            store["targets"] = self.targets
        if self.row_weights is not None:
            store["row_weights"] = self.row_weights
        if self.solved and self.dual is not None:
            store["dual"] = self.dual.numpy()
        if self.solved and self.constant is not None:
            store["constant"] = self.constant.numpy()
        weights = self.weights if self.solved else None
        for i, weight in enumerate(weights or []):
            store[f"weight_{i}"] = weight.numpy()
        self.calibrate()  # what a file has no rows for
        meta = {
            "classes": self.classes and self.classes.to_json(),
            "facts": self.facts,
            "trained": self.trained,
            "anchors": _skeleton(self.anchors),
            "weights": None if weights is None else len(weights),
        }
        store["meta"] = np.frombuffer(json.dumps(meta).encode(), "uint8")

    def load(self, store: Any) -> None:
        """Read what `save` wrote.

        Raises:
            ValueError: If an array holds NaN or Inf, which `save` never writes.
        """
        damage = self._damage
        self._clear()
        if "meta" in store.keys():  # noqa: SIM118  Keras' stores are no mappings
            try:
                self._fill(store)
            except ValueError as error:
                self._clear()
                self._damage = str(error)
                raise
        elif damage is not None:
            # Keras looks for a layer that failed under its other names, where nothing is,
            # and would take that for success.
            self._damage = damage
            raise ValueError(damage)

    def _clear(self) -> None:
        kept = {"shelf": self.shelf, "inverse_temperature": self.inverse_temperature}
        self.__dict__.update({**State().__dict__, **kept})
        self.shelf.held = []

    def _fill(self, store: Any) -> None:
        keys = set(store.keys())
        meta = json.loads(np.asarray(store["meta"], "uint8").tobytes().decode())
        self.facts, self.trained = meta["facts"], meta["trained"]
        labels = meta.get("classes")
        self.classes = labels and Classes.from_json(labels)
        if meta["anchors"] is not None:
            x = _filled(meta["anchors"], lambda i: _anchor(store, f"anchor_{i}"))
            self.anchors = _assigned(None, x)
        self.targets = _sound(store, "targets") if "targets" in keys else None
        if "row_weights" in keys:
            self.row_weights = _sound(store, "row_weights")
        if "dual" in keys:
            self.set_dual(_sound(store, "dual"))
        if "constant" in keys:
            self.set_constant(_sound(store, "constant"))
        if meta["weights"] is not None:
            arrays = [_sound(store, f"weight_{i}") for i in range(meta["weights"])]
            self.set_weights([tf.constant(array) for array in arrays])
        self.shelf.held = self.read()


def values(x: Any) -> Any:
    """Return the present values of nested variables."""
    return keras.tree.map_structure(lambda v: v.read_value(), x)


def _anchor(store: Any, name: str) -> np.ndarray:
    """Read anchors, which were written as bytes and lengths where they are text."""
    array, lengths = _sound(store, name), f"{name}_lengths"
    if lengths not in store.keys():  # noqa: SIM118  Keras' stores are no mappings
        return array
    return _text.decoded(array, _sound(store, lengths))


def _sound(store: Any, name: str) -> np.ndarray:
    array = np.asarray(store[name])
    if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
        raise ValueError(
            f"The saved head is damaged: its array `{name}` holds NaN or Inf. Load another "
            "copy of the file, or make the model anew and call `fit_head`. Received: "
            f"{np.sum(~np.isfinite(array))} such entries of {array.size}"
        )
    return array


def describe(x: Any) -> Any:
    """Return shapes and types of nested inputs, as JSON."""
    parts = [tf.convert_to_tensor(part) for part in keras.tree.flatten(x)]
    specs = [[list(part.shape[1:]), part.dtype.name] for part in parts]
    return {"structure": _skeleton(x), "specs": specs}


def _assigned(old: Any, new: Any) -> Any:
    """Assign rows to the old variables where they fit, else make new ones of any length."""
    new = keras.tree.map_structure(tf.convert_to_tensor, new)
    if old is not None and _specs(old) == _specs(new):
        keras.tree.map_structure(lambda v, t: v.assign(t), old, new)
        return old
    return keras.tree.map_structure(
        lambda t: tf.Variable(t, trainable=False, shape=[None, *t.shape[1:]]), new
    )


def _exact(old: list[tf.Variable] | None, new: list[tf.Tensor]) -> list[tf.Variable]:
    """Assign to the old variables where shapes and types fit, else make new ones."""
    specs = [(t.shape, t.dtype) for t in new]
    if old is not None and [(v.shape, v.dtype) for v in old] == specs:
        for variable, value in zip(old, new, strict=True):
            variable.assign(value)
        return old
    return [tf.Variable(t, trainable=False) for t in new]


def _specs(x: Any) -> str:
    return repr(keras.tree.map_structure(lambda t: (tuple(t.shape[1:]), t.dtype), x))


def _skeleton(x: Any) -> Any:
    """Return the nested structure with a number in place of each array."""
    if x is None:
        return None
    numbers = iter(range(len(keras.tree.flatten(x))))
    marked = keras.tree.map_structure(lambda _: next(numbers), x)
    return _to_json(marked)


def _to_json(x: Any) -> Any:
    if isinstance(x, dict):
        return {"dict": {k: _to_json(v) for k, v in x.items()}}
    if isinstance(x, list | tuple):
        return {"tuple" if isinstance(x, tuple) else "list": [_to_json(v) for v in x]}
    return x


def _filled(skeleton: Any, array: Any) -> Any:
    if isinstance(skeleton, int):
        return array(skeleton)
    ((kind, parts),) = skeleton.items()
    if kind == "dict":
        return {k: _filled(v, array) for k, v in parts.items()}
    filled = [_filled(v, array) for v in parts]
    return tuple(filled) if kind == "tuple" else filled

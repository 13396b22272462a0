"""What training cannot do, said before it begins: constant kernels, noise, new weights."""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_kare._sentences import listed
from keras_kare.kernels.structured.untouched import walk

CONSTANT = (
    "The kernel does not depend on any weight that trains: the network is linear in all of "
    "them ({names}), but for kinks (ReLU, max pooling), so that training changes nothing. "
    "`fit_head` solves it at once; else unfreeze a layer, and call `compile` again."
)

AS_IN_INFERENCE = (
    "Kernels run the network as in inference, also while they train: {what}. The ridge of "
    "the loss regularises instead; augment rows, and bring statistics up to date, before."
)

NEW_VARIABLES = (
    "Variables train that the optimizer was not made for ({names}): `trainable` has been "
    "changed since `compile`. Call `compile` again, with a new optimizer."
)


class Told:
    """What a model has been told, and for which variables its optimizer was made."""

    def __init__(self) -> None:
        self._said: set[Any] = set()
        self._optimizer: Any = None
        self._known: list[Any] = []

    def once(self, key: Any) -> bool:
        """Tell whether this is the first time that something is to be said."""
        first = key not in self._said
        self._said.add(key)
        return first

    def build(self, optimizer: Any, variables: Sequence[Any]) -> None:
        """Make an optimizer for variables, unless it has been made."""
        if not optimizer.built:
            optimizer.build(variables)
            self._optimizer, self._known = weakref.ref(optimizer), list(variables)

    def check(self, optimizer: Any, variables: Sequence[Any]) -> None:
        """Refuse variables that an optimizer was not made for.

        Raises:
            ValueError: If there are some.
        """
        if self._optimizer is None or self._optimizer() is not optimizer:
            return  # made elsewhere; Keras looks, too
        known = {id(v) for v in self._known}
        if new := [v.path for v in variables if id(v) not in known]:
            raise ValueError(NEW_VARIABLES.format(names=listed(new)))

    def __deepcopy__(self, memo: Any) -> Told:
        return Told()

    def __reduce__(self) -> Any:
        return (Told, ())


class Retraced:
    """A train function that is made anew where other variables train than when it was.

    Args:
        model: The model.
        make: Makes the function.
    """

    def __init__(self, model: Any, make: Callable[[], Any]):
        self._model, self._make = model, make
        self._begin()

    def _begin(self) -> None:
        self._trained = [id(v) for v in self._model.trainable_variables]
        self._function = self._make()

    def __call__(self, iterator: Any) -> Any:
        if self._trained != [id(v) for v in self._model.trainable_variables]:
            self._begin()
            self._model.train_function = self  # Keras has put the new one there
        return self._function(iterator)


def before_training(model: Any, x: Any, stacklevel: int = 4) -> None:
    """Say what training will not do, once a model; refuse what its optimizer cannot.

    Args:
        model: A compiled `KAREModel` whose kernel has been checked on `x`.
        x: Rows, `(n, ...)`.
        stacklevel: Of the warnings, that of the user's line.

    Raises:
        ValueError: If variables train that the optimizer was not made for.
    """
    told, variables = model._told, model.trainable_variables
    told.check(model.optimizer, variables)
    told.build(model.optimizer, variables)  # else the step would be traced twice
    trains = tuple(id(v) for v in variables)
    if told.once(("constant", trains)) and model.kernel.is_constant(x):
        names = listed([v.path for v in variables])
        warnings.warn(CONSTANT.format(names=names), stacklevel=stacklevel)
    looks = model.network is not None and told.once(("idle", trains))  # a walk
    if looks and (what := idle(model.network)) and told.once("idle"):
        warnings.warn(AS_IN_INFERENCE.format(what=what), stacklevel=stacklevel)


def idle(network: keras.Model) -> str:
    """Say which layers of a network do in training what a kernel leaves out.

    Returns:
        A sentence's part; empty where there are none.
    """
    noisy = [layer.name for layer in walk(network) if is_noisy(layer)]
    moving = [layer.name for layer in walk(network) if _has_moving_statistics(layer)]
    own = [layer.name for layer in walk(network) if _tells_training(layer)]
    parts = []
    if noisy:
        parts.append(f"dropout, noise and augmentation are off ({listed(noisy)})")
    if moving:
        parts.append(f"moving statistics stay as they are ({listed(moving)})")
    if own:
        parts.append(f"layers with an argument `training` get False ({listed(own)})")
    return ", and ".join(parts)


def is_noisy(layer: keras.layers.Layer) -> bool:
    """Tell whether a layer draws random numbers in training.

    Keras gives such layers a generator; cells of recurrent layers have one in any case.
    """
    parts = vars(layer).values()
    drawing = any(isinstance(part, keras.random.SeedGenerator) for part in parts)
    rates = [getattr(layer, name, None) for name in ("dropout", "recurrent_dropout")]
    return drawing and (any(rates) or None in rates)


def _tells_training(layer: keras.layers.Layer) -> bool:
    """Tell whether a layer of the user's own may do something else in training."""
    foreign = not type(layer).__module__.startswith("keras.") and not is_noisy(layer)
    alone = foreign and len(walk(layer)) == 1  # else its parts are looked at
    return alone and "training" in inspect.signature(layer.call).parameters


def _has_moving_statistics(layer: keras.layers.Layer) -> bool:
    kinds = (keras.layers.BatchNormalization, keras.layers.SpectralNormalization)
    return isinstance(layer, kinds) and bool(layer.trainable)

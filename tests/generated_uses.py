"""The ways in which generated networks use a layer; see `generated_networks.py`.

A way is a layer around the layer under test. It is shown rows and a *gate*, a number
a row that is zero on all rows that a kernel is planned with, and not on others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
from generated_layers import VOCABULARY, Part
from keras import layers, ops


class Body(layers.Layer):
    """The layer under test, and what is done with it."""

    def __init__(self, part: Part, dtype: Any = None, first: bool = False, **own: Any):
        super().__init__()
        self._part, self._own = part, own | ({} if dtype is None else {"dtype": dtype})
        self.layer = self.another()
        self.before = None
        if not part.tokens and not first:
            self.before = layers.Dense(part.shape[-1], "tanh")
        self.prepare()

    def another(self) -> Any:
        return self._part.make(**self._own)

    def prepare(self) -> None:
        """Whatever else is held."""

    def call(self, x: Any) -> Any:
        gate = self.gate_of(x)
        h = x if self.before is None else self.before(x)
        return self.combine(h, gate)

    def gate_of(self, x: Any) -> Any:
        if self._part.tokens:
            gate = ops.cast(x[:, :1] == VOCABULARY - 1, self.compute_dtype)
        else:
            gate = ops.reshape(x, (-1, x.shape[1:].num_elements()))[:, :1]
        return gate

    def use(self, h: Any, layer: Any = None) -> Any:
        """Outputs of the layer, flat, in the type of this layer."""
        return self.numbers(self._part.call(self.layer if layer is None else layer, h))

    def numbers(self, h: Any) -> Any:
        return flat(ops.cast(h, self.compute_dtype))

    def view(self, h: Any) -> Any:
        """The same rows, seen otherwise."""
        return (h + 1) % VOCABULARY if self._part.tokens else 0.5 * h + 0.3

    def combine(self, h: Any, gate: Any) -> Any:
        raise NotImplementedError

    def touch(self, index: int = 0) -> Any:
        """A number made of one of the layer's variables, past the layer."""
        variable = ops.convert_to_tensor(self.layer.trainable_variables[index])
        return ops.cast(ops.mean(ops.sin(2.0 * variable)), self.compute_dtype)


def flat(h: Any) -> Any:
    return ops.reshape(h, (-1, h.shape[1:].num_elements()))


class Plain(Body):
    def combine(self, h: Any, gate: Any) -> Any:
        return ops.tanh(self.use(h))


class Twice(Body):
    """Two uses side by side."""

    def combine(self, h: Any, gate: Any) -> Any:
        return self.use(h) * ops.tanh(self.use(self.view(h)))


class Behind(Body):
    """One use behind the other."""

    def combine(self, h: Any, gate: Any) -> Any:
        once = ops.tanh(self.use(h))
        return self.use(ops.reshape(once, (-1, *self._part.shape)))


class Tied(Body):
    def combine(self, h: Any, gate: Any) -> Any:
        return ops.tanh(self.use(h)) * (1.0 + self.touch())


class TiedLast(Body):
    """The last variable, a bias for most layers."""

    def combine(self, h: Any, gate: Any) -> Any:
        return ops.tanh(self.use(h)) + self.touch(-1)


class GatedTwice(Body):
    def combine(self, h: Any, gate: Any) -> Any:
        return ops.tanh(self.use(h)) + gate * self.use(self.view(h))


class GatedTie(Body):
    def combine(self, h: Any, gate: Any) -> Any:
        return ops.tanh(self.use(h)) + gate * self.touch()


class GatedAlone(Body):
    """No row of the plan knows of the layer."""

    def combine(self, h: Any, gate: Any) -> Any:
        return gate * ops.tanh(self.use(h))


class Hard(Body):
    def combine(self, h: Any, gate: Any) -> Any:
        shut = ops.cast(gate == 0, self.compute_dtype)
        used = self.use(h)
        return shut * used + (1.0 - shut) * self.touch() * used


class Where(Body):
    def combine(self, h: Any, gate: Any) -> Any:
        return ops.where(gate != 0, self.use(self.view(h)), ops.tanh(self.use(h)))


class CondAny(Body):
    """Work that is left out where no row needs it: rows do not interact."""

    def combine(self, h: Any, gate: Any) -> Any:
        used = ops.tanh(self.use(h))
        return ops.cond(
            ops.any(gate != 0),
            lambda: used + gate * self.use(self.view(h)),
            lambda: used,
        )


class CondSwitch(Body):
    """A switch that is a variable."""

    def build(self, shape: Any) -> None:
        self.switch = self.add_weight(shape=(), initializer="ones", trainable=False)
        self.built = True

    def combine(self, h: Any, gate: Any) -> Any:
        used = ops.tanh(self.use(h))
        on = lambda: self.use(self.view(h)) * used  # noqa: E731
        return ops.cond(self.switch > -9.0, on, lambda: used)


class Mapped(Body):
    """A row at a time, inside a loop; once outside of it, too, where the gate is open."""

    def combine(self, h: Any, gate: Any) -> Any:
        looped = tf.map_fn(
            lambda row: self.use(row[None])[0],
            h,
            fn_output_signature=tf.as_dtype(self.compute_dtype),
        )
        return ops.tanh(looped) + gate * self.use(h)


class Vectorised(Body):
    """The same by `vectorized_map`, whose body TensorFlow traces for one row."""

    def combine(self, h: Any, gate: Any) -> Any:
        looped = ops.vectorized_map(lambda row: self.use(row[None])[0], h)
        return ops.tanh(looped) + gate * self.use(self.view(h))


class Routed(Body):
    """Rows are sent to one of two experts, and come back in order."""

    def prepare(self) -> None:
        self.expert = self.another()

    def combine(self, h: Any, gate: Any) -> Any:
        way = tf.cast(gate[:, 0] != 0, tf.int32)
        left, right = tf.dynamic_partition(h, way, 2)
        where = tf.dynamic_partition(tf.range(tf.shape(way)[0]), way, 2)
        used = [self.use(left, self.expert), self.use(right)]
        back = tf.dynamic_stitch(where, used)
        return ops.tanh(tf.ensure_shape(back, [None, used[0].shape[1]]))


class RoutedShared(Routed):
    """One expert is also everybody's."""

    def combine(self, h: Any, gate: Any) -> Any:
        return super().combine(h, gate) + ops.tanh(self.use(h))


class Experts(Routed):
    """Every expert computes every row; a one-hot choice is kept."""

    def combine(self, h: Any, gate: Any) -> Any:
        way = ops.one_hot(ops.cast(gate[:, 0] != 0, "int32"), 2, dtype=self.compute_dtype)
        both = ops.stack([self.use(h, self.expert), self.use(h)], axis=1)
        return ops.tanh(ops.sum(way[:, :, None] * both, axis=1))


class FrozenLayer(Body):
    """Frozen, and used twice; what is before it trains."""

    def freeze(self) -> None:
        self.layer.trainable = False

    def combine(self, h: Any, gate: Any) -> Any:
        return self.use(h) * ops.tanh(self.use(self.view(h)))


class FrozenVariable(GatedTwice):
    def freeze(self) -> None:
        self.layer.trainable_variables[0].trainable = False


class FrozenLast(Tied):
    def freeze(self) -> None:
        if len(self.layer.trainable_variables) > 1:
            self.layer.trainable_variables[-1].trainable = False


class Inner(layers.Layer):
    """A layer that holds the layer of another."""

    def __init__(self, body: Body):
        super().__init__()
        self.inner, self._call = body.layer, body._part.call

    def call(self, x: Any) -> Any:
        return self._call(self.inner, x)


class Nested(Body):
    """In a layer that is called twice, the second time behind a gate."""

    def prepare(self) -> None:
        self.nested = Inner(self)

    def combine(self, h: Any, gate: Any) -> Any:
        first, second = (self.numbers(self.nested(t)) for t in (h, self.view(h)))
        return ops.tanh(first) + gate * second


class NestedModel(Body):
    """In a functional model that is called twice."""

    def prepare(self) -> None:
        kind = "int32" if self._part.tokens else None
        x = keras.Input(self._part.shape, dtype=kind)
        self.model = keras.Model(x, self._part.call(self.layer, x))

    def combine(self, h: Any, gate: Any) -> Any:
        first, second = (self.numbers(self.model(t)) for t in (h, self.view(h)))
        return ops.tanh(first) * second


class Untracked(Body):
    """The layer is also reached through an object that Keras does not look into."""

    def prepare(self) -> None:
        self._box = type("Box", (), {})()
        self._box.layer = self.layer

    def combine(self, h: Any, gate: Any) -> Any:
        return ops.tanh(self.use(h)) + gate * self.use(self.view(h), self._box.layer)


class Stopped(Body):
    """One use hides its road, the other does not."""

    def combine(self, h: Any, gate: Any) -> Any:
        return ops.stop_gradient(self.use(h)) * ops.tanh(self.use(self.view(h)))


class StraightThrough(Body):
    """Rounded forwards, as if not rounded backwards; and gated."""

    def combine(self, h: Any, gate: Any) -> Any:
        used = ops.tanh(self.use(h))
        rounded = used + ops.stop_gradient(ops.round(2.0 * used) - used)
        return rounded + gate * self.use(self.view(h))


class CustomGradient(Body):
    """A user's own gradient around the layer's outputs."""

    def combine(self, h: Any, gate: Any) -> Any:
        @tf.custom_gradient
        def doubled(t: Any) -> Any:
            return ops.tanh(t), lambda upstream: 2.0 * upstream

        return doubled(self.use(h)) + gate * self.use(self.view(h))


class Rematerialised(Body):
    def combine(self, h: Any, gate: Any) -> Any:
        return ops.tanh(keras.remat(self.use)(h)) + gate * self.use(self.view(h))


class TracedOnly(Body):
    """The layer is seen by a `tf.function` alone."""

    def prepare(self) -> None:
        self.function = tf.function(self.twice)

    def twice(self, x: Any) -> Any:
        return self.use(x) * 2.0

    def seen(self, *x: Any) -> Any:
        """By the function once the layer is built: Keras would bake first values in."""
        function = self.function if self.layer.built else self.function.python_function
        return function(*x)

    def combine(self, h: Any, gate: Any) -> Any:
        return ops.tanh(self.seen(h))


class TracedBeside(TracedOnly):
    """By a `tf.function`, and directly."""

    def combine(self, h: Any, gate: Any) -> Any:
        return ops.tanh(self.seen(h)) + self.use(self.view(h))


class TracedGated(TracedOnly):
    def combine(self, h: Any, gate: Any) -> Any:
        return ops.tanh(self.use(h)) + gate * self.function(self.view(h))


class TracedBranch(TracedOnly):
    """A Python `if` on a tensor, which autograph makes a branch of the graph."""

    def prepare(self) -> None:
        def branch(h: Any, gate: Any) -> Any:
            if not self.layer.built:
                out = self.use(h)
            elif tf.reduce_any(gate != 0):
                out = self.use(h) + gate * self.use(self.view(h))
            else:
                out = self.use(h)
            return out

        self.function = tf.function(branch)

    def combine(self, h: Any, gate: Any) -> Any:
        return ops.tanh(self.seen(h, gate))


class TracedInner(Inner):
    @tf.function
    def call(self, x: Any) -> Any:
        return self._call(self.inner, x)


class TracedCall(Body):
    """A layer whose `call` is a `tf.function` holds the layer, which is used beside it."""

    def prepare(self) -> None:
        self.traced = TracedInner(self)

    def combine(self, h: Any, gate: Any) -> Any:
        return ops.tanh(self.numbers(self.traced(h))) + self.use(self.view(h))


class Cached(Body):
    """A `tf.function` of the layer itself, which was called before."""

    warm = True

    def prepare(self) -> None:
        self.function = tf.function(self.layer.__call__, reduce_retracing=True)

    def combine(self, h: Any, gate: Any) -> Any:
        call = self._part.call(lambda *x: self.function(*x), h)
        return ops.tanh(self.numbers(call)) * self.use(self.view(h))


class StaticRows(Body):
    """Few rows, if their number is known, go in two pieces: the values are the same."""

    def combine(self, h: Any, gate: Any) -> Any:
        if h.shape[0] is None or h.shape[0] > 4:
            used = ops.concatenate([self.use(h[:1]), self.use(h[1:])], axis=0)
        else:
            used = self.use(h)
        return ops.tanh(used) + gate * self.use(self.view(h))


class StaticTraced(TracedOnly):
    """Many rows, or an unknown number, go through a `tf.function`."""

    def combine(self, h: Any, gate: Any) -> Any:
        few = h.shape[0] is not None and h.shape[0] <= 4
        used = 2.0 * self.use(h) if few else self.function(h)
        return ops.tanh(used) + gate * self.use(self.view(h))


class Dead(Body):
    """The whole network is shut on the rows of the plan."""

    def last(self, f: Any, gate: Any) -> Any:
        return ops.relu(ops.cast(gate, f.dtype) * ops.softplus(f))

    def combine(self, h: Any, gate: Any) -> Any:
        return ops.tanh(self.use(h))


class Folded(Body):
    """Rows are taken two ways through a folded axis, each still alone."""

    def combine(self, h: Any, gate: Any) -> Any:
        both = ops.concatenate([h, self.view(h)], axis=0)
        used = ops.reshape(self.use(both), (2, -1, self.use(h).shape[1]))
        return ops.tanh(used[0]) + gate * used[1]


class Masked(Body):
    """Steps of zeros are masked."""

    def prepare(self) -> None:
        self.masking = layers.Masking(0.0)

    def call(self, x: Any) -> Any:
        h = self.before(x) * ops.cast(ops.any(x != 0, axis=-1, keepdims=True), x.dtype)
        return self.combine(self.masking(h), self.gate_of(x))

    def combine(self, h: Any, gate: Any) -> Any:
        return ops.tanh(self.use(h)) + gate * self.touch()


class Optional(Body):
    """A second input that is mostly missing goes through the same layer."""

    two = True

    def call(self, inputs: Any) -> Any:
        x, other = inputs
        there = ops.any(other != 0, axis=tuple(range(1, len(other.shape))))
        there = ops.cast(there, self.compute_dtype)[:, None]
        h = (t if self.before is None else self.before(t) for t in (x, other))
        first, second = (self.use(t) for t in h)
        return ops.tanh(first) + there * second


class LateActivation(Body):
    """An activation that is a layer, which is built at the first call."""

    late = True

    def another(self) -> Any:
        slope = layers.PReLU(alpha_initializer=keras.initializers.RandomUniform(0.2, 0.8))
        return self._part.make(activation=slope, **self._own)

    def combine(self, h: Any, gate: Any) -> Any:
        return self.use(h)


@dataclass(frozen=True)
class Use:
    """A way of use, and the layer types that it is for."""

    body: Callable[..., Body]
    fits: Callable[[Part], bool] = lambda part: True


def no_tokens(part: Part) -> bool:
    return not part.tokens


def light(part: Part) -> bool:
    return not part.heavy


def takes_parts(part: Part) -> bool:
    return part.empty and light(part)


USES: dict[str, Use] = {
    "plain": Use(Plain),
    "twice": Use(Twice),
    "behind": Use(Behind, lambda part: part.same),
    "tied": Use(Tied),
    "tied last": Use(TiedLast),
    "gated twice": Use(GatedTwice),
    "gated tie": Use(GatedTie),
    "gated alone": Use(GatedAlone),
    "hard gate": Use(Hard),
    "where": Use(Where),
    "cond any": Use(CondAny, light),
    "cond switch": Use(CondSwitch, light),
    "mapped": Use(Mapped, light),
    "vectorised": Use(Vectorised, light),
    "routed": Use(Routed, takes_parts),
    "routed shared": Use(RoutedShared, takes_parts),
    "experts": Use(Experts),
    "frozen layer": Use(FrozenLayer, no_tokens),
    "frozen variable": Use(FrozenVariable),
    "frozen last": Use(FrozenLast),
    "nested": Use(Nested),
    "nested model": Use(NestedModel),
    "untracked": Use(Untracked),
    "stopped": Use(Stopped),
    "straight through": Use(StraightThrough),
    "custom gradient": Use(CustomGradient),
    "traced only": Use(TracedOnly),
    "traced beside": Use(TracedBeside),
    "traced gated": Use(TracedGated),
    "traced branch": Use(TracedBranch, light),
    "traced call": Use(TracedCall),
    "cached": Use(Cached),
    "static rows": Use(StaticRows),
    "static traced": Use(StaticTraced),
    "dead": Use(Dead),
    "folded": Use(Folded),
    "masked": Use(Masked, lambda part: part.masks),
    "optional": Use(Optional),
    "late activation": Use(LateActivation, lambda part: part.activates),
}
if hasattr(keras, "remat"):  # since Keras 3.9
    USES["rematerialised"] = Use(Rematerialised)

"""The neural tangent kernel of a Keras network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _rows, _validation
from keras_kare._sentences import sentence
from keras_kare.kernels import adapters, frozen, making, memory, ties
from keras_kare.kernels.destinations import check_no_out
from keras_kare.kernels.identity import Identity
from keras_kare.kernels.inputs import check_shapes
from keras_kare.kernels.kernel import Kernel
from keras_kare.kernels.kernel_plan import KernelPlan, kernel_plan
from keras_kare.kernels.operator import KernelOperator
from keras_kare.kernels.plans import Plans
from keras_kare.kernels.row_faults import check_outputs, check_values, shown_by
from keras_kare.kernels.sizes import Sizes
from keras_kare.kernels.structured.chosen import Places, places_of, variables_of
from keras_kare.kernels.structured.features import FeatureMap, feature_map
from keras_kare.kernels.structured.plan import Plan
from keras_kare.kernels.structured.refusals import second_derivative
from keras_kare.kernels.structured.trial import tolerance_of
from keras_kare.kernels.structured.untouched import untouched, walk
from keras_kare.kernels.traces import Runtime
from keras_kare.kernels.work import Work

OUTPUTS = ("sum", "trace", "full")
METHODS = ("auto", "structured", "jacobian")

_NOT_FINITE = sentence(
    "An input of the kernel holds NaN or Inf. Remove or impute those entries. Input"
)


@keras.saving.register_keras_serializable(package="keras_kare")
class NTK(Kernel):
    """The neural tangent kernel of a network, exact and differentiable.

    With `J(x)` the Jacobian of the outputs `f(x; θ)` with respect to the trainable
    variables, `K(x, x') = J(x) J(x')ᵀ`. The network runs with `training=False`.
    Variables of frozen layers (`trainable=False`) are not part of the kernel.

    `layers` takes derivatives by the variables of some layers alone: values are those with
    all other layers frozen. But freezing also takes variables out of training, and `layers`
    does not: the gradient of KARE is by all trainable variables, of which the others shape
    what these layers are given and what becomes of their outputs. The kernels of parts
    that share no variable, and have all, sum to the kernel of all.

    Args:
        network: A `keras.Model` that maps rows to one tensor of `c` outputs a row.
            Its rows must not interact. Outputs of more axes are flattened.
        outputs: Which kernel when `c > 1`; for `c = 1` all agree.
            `"sum"`: the NTK of the summed outputs, `sum_kl J_k J_lᵀ`, `(n1, n2)`.
            `"trace"`: `(1/c) sum_k J_k J_kᵀ`, `(n1, n2)`.
            `"full"`: all blocks `J_k J_lᵀ`, `(n1, n2, c, c)`.
            Defaults to `"sum"`.
        method: How it is computed; all are exact.
            `"jacobian"`: the plain definition, `tf.GradientTape.jacobian` and a
            product, one variable at a time. Slow; certain.
            `"structured"`: from each layer's inputs and output gradients; no array
            of `n` times the number of variables. A variable is served by a layer rule
            only where the traced graph proves that every road from it to the outputs
            goes through the rule; all others take the plain Jacobian, announced by a
            warning (`plan` says why).
            `"auto"`: whichever is cheaper, today always `"structured"`. What it
            chose inside each layer's rule, and why, `plan` tells.
            Defaults to `"auto"`.
        layers: Of which the kernel is: a list of layers of a network that has been built,
            or of their names, nested ones included. Defaults to `None`: of all.
        memory_limit: Bytes that computing kernel values may hold, beside inputs,
            weights and the result. Where all rows at once would take more, they go in
            tiles; gradients then recompute the tiles' features. Defaults to half of
            what is free on the device when the work begins.
        name: Name of the layer.

    Raises:
        TypeError: If `network` is no `keras.Model`, or `layers` no list.
        ValueError: If `outputs`, `method` or one of `layers` is unknown. At the first use:
            if the network has no trainable variable, rows that interact, random outputs,
            or constant summed outputs with `outputs="sum"`.

    Weights, which of them train, and the attributes of layers are looked at in each call:
    after a change the network is traced again. (What changes inside an array or an object
    that a layer holds is not seen: give the layer a new one.)

    Example:

    ```python
    import keras, numpy as np
    import keras_kare as kk

    network = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(64, "gelu"), keras.layers.Dense(1)]
    )
    kernel = kk.kernels.NTK(network)
    x = np.random.default_rng(0).normal(size=(10, 4)).astype("float32")
    gram = kernel.gram(x)            # (10, 10)
    cross = kernel.cross(x[:3], x)   # (3, 10)
    ```

    References:
        - Jacot, Gabriel, Hongler, "Neural tangent kernel", arXiv:1806.07572.
        - Novak, Sohl-Dickstein, Schoenholz, "Fast finite width neural tangent
          kernel", arXiv:2206.08720.
        - Schwab, Kelly, Malamud, Xu, "Training NTK to generalize with KARE",
          arXiv:2505.11347.
    """

    has_features = True

    def __init__(
        self,
        network: keras.Model,
        outputs: str = "sum",
        method: str = "auto",
        layers: Sequence[str | keras.layers.Layer] | None = None,
        memory_limit: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        if not isinstance(network, keras.Model):
            raise TypeError(
                "`network` must be a `keras.Model`. "
                f"Received: network={network!r} of type {type(network).__name__}"
            )
        _validation.check_option("outputs", outputs, OUTPUTS)
        _validation.check_option("method", method, METHODS)
        _validation.check_memory_limit(memory_limit)
        super().__init__(name=name, **kwargs)
        self.network = network
        self._places: Places | None = places_of(network, layers)
        self.outputs = outputs
        self.method = method
        self.memory_limit = memory_limit
        self.has_features = outputs != "full"
        self._runtime = Runtime()
        self._runtime.ready = network.built
        self._adapted: dict[str, np.ndarray] = {}
        self._frozen: list[int] = []  # until the network has its variables

    def build(self, input_shape: Any) -> None:
        if not self.network.built:
            self.network.build(input_shape)
        self.built = True

    def gram(self, x: Any, dtype: str | None = None, out: Any = None) -> Any:
        """Return kernel values between all rows of `x`, symmetric by construction.

        More than a few thousand rows, or more than `memory_limit` allows at once, go
        in tiles, each pair of tiles once, with a progress bar where Keras may print.
        Ctrl-C stops between two tiles.

        Args:
            x: `(n, ...)`, or a nested structure of such arrays.
            dtype: Type in which the products are formed. Defaults to that of the
                network's variables (at least float32).
            out: Where the values go. Defaults to a tensor on the device. A NumPy
                array of the result's shape (in memory, or a `numpy.memmap`) is filled.
                The name of a `.npy` file is written tile by tile, with a note beside
                it (`FILE.tiles.json`) of what is done: interrupted work goes on with
                the next call of the same kernel, weights and rows. The note has a
                checksum of each tile; damaged ones are computed again, with a warning.

        Returns:
            `(n, n)`, or `(n, n, c, c)` for `outputs="full"`. A tensor, differentiable
            with respect to the network's variables; or `out`; or, for a file, its
            `numpy.memmap`.

        Raises:
            ValueError: If `x` is empty, or `x` or a weight holds NaN or Inf, or `out`
                does not fit.
            MemoryError: Before the work, if it does not fit in `memory_limit`, or the
                result not in memory.
            OSError: Before the work, if the file does not fit on its disk, or another
                call writes to it.
        """
        return self._run("gram", (x,), (), dtype, out)

    def cross(self, x1: Any, x2: Any, dtype: str | None = None, out: Any = None) -> Any:
        """Return kernel values between the rows of `x1` and `x2`.

        Args and errors as in `gram`.

        Returns:
            `(n1, n2)`, or `(n1, n2, c, c)` for `outputs="full"`.
        """
        return self._run("cross", (x1, x2), (), dtype, out)

    def diag(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        """Return the diagonal of `gram(x)` without the rest.

        Returns:
            `(n,)`, or `(n, c, c)` for `outputs="full"`.
        """
        return self._run("diag", (x,), (), dtype)

    def vjp(self, x: Any, v: Any, dtype: str | None = None) -> list[tf.Tensor]:
        """Return `Jᵀ v` for `m` vectors at once: reverse mode.

        Args:
            x: `(n, ...)`.
            v: `(n, m)`.
            dtype: Type in which the sums over rows are formed.

        Returns:
            For each trainable variable, or those of `layers`, `(m, C) + variable.shape`,
            where `C` is 1 for `outputs="sum"` and `c` for `"trace"`, whose feature map is
            that of all outputs side by side, divided by `√c`. Then `jvp(x', vjp(x, v))`
            equals `cross(x', x) v`.
        """
        self._require_features()
        return self._run("vjp", (x,), (v,), dtype)

    def jvp(self, x: Any, w: list[tf.Tensor]) -> tf.Tensor:
        """Return `J w` for `m` directions at once: forward mode.

        Args:
            x: `(n, ...)`.
            w: One array a variable, `(m, C) + variable.shape`, as `vjp` returns them. The
                products are formed in their type, if it is wider than that of the network.

        Returns:
            `(n, m)`.
        """
        self._require_features()
        wide = any(part.dtype == tf.float64 for part in w)
        return self._run("jvp", (x,), (list(w),), "float64" if wide else None)

    def feature_variables(self) -> list[keras.Variable]:
        return variables_of(self.network, self._places)

    def operator(self, x: Any) -> KernelOperator:
        x = self._rows("x", x)
        self._check_weights()
        return super().operator(x)

    def feature_rows(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        return self._work(x, dtype).over_slices("feature_rows", x)

    def _feature_shapes(self, x: Any) -> list[tuple[int, ...]]:
        return self._shapes(self._plan(x))

    def _shapes(self, plan: Plan) -> list[tuple[int, ...]]:
        outputs = plan.outputs if self.outputs == "trace" else 1
        return [(outputs, *v.shape) for v in plan.variables]

    def held(self, x: Any) -> Any:
        return self._work(x, None).over_slices("held", x)

    def pull(self, held: Any, v: tf.Tensor) -> list[tf.Tensor]:
        return self._held_work().traces.of_held("pull", held, v)

    def push(self, held: Any, w: list[tf.Tensor]) -> tf.Tensor:
        return self._held_work().traces.of_held("push", held, w)

    def chunk(self, x: Any, vectors: int) -> tuple[int, bool]:
        return self._work(x, None).chunk(_rows.count(x), vectors)

    def pair_flops(self, x: Any) -> float:
        return sum(share.cost.pair_flops for share in self._plan(x).shares)

    def _work(self, x: Any, dtype: str | None) -> Work:
        return Work(self._runtime, self._feature_map(x, dtype), self._limit())

    def _held_work(self) -> Work:
        """Return the work of what `held` returned, by its plan: no row is needed."""
        plan = self._plans().known()
        if plan is None:
            raise ValueError(
                "The network's trainable variables are no longer those of `held`. Call "
                f"`held` again. Received: network={self.network.name!r}"
            )
        features = feature_map(self.network, plan, self.outputs, None)
        return Work(self._runtime, features, self._limit())

    def plan(self, x: Any) -> KernelPlan:
        """Tell how `gram(x)` would be computed, and what it would take; compute nothing.

        Args:
            x: `(n, ...)`.

        Returns:
            A `KernelPlan`: for each group of variables the path that was chosen by a
            count of operations and bytes, and whether it is a fallback; tiles and
            memory. `print` shows a table.

        Example:

        ```python
        print(kernel.plan(x))
        ```
        """
        x = self._rows("x", x)
        features = self._feature_map(x, None)
        rows = _rows.count(x)
        return kernel_plan(features.plan, Sizes.of(features), rows, self._limit())

    def check(self, x: Any, rows: int | None = None) -> None:
        """Refuse rows or weights without an NTK, and plan how to compute it.

        Args:
            x: `(n, ...)`.
            rows: How many rows at a time a function will be traced for that does not
                know it from its shapes. Decides whether its gradients go in tiles.
                Defaults to those of `x`.

        Raises:
            ValueError: As listed in the class and in `gram`.
        """
        x = self._rows("x", x)
        self._check_weights()
        self._plan(x)
        tolerance = tolerance_of(walk(self.network))
        name = self.network.name
        check_outputs(self._outputs, self._diagonal, name, x, tolerance)
        self._runtime.expected_rows = rows or _rows.count(x)
        self.built = True

    def _rows(self, name: str, x: Any) -> Any:
        """Return rows as tensors that the network takes."""
        x = _validation.check_rows(name, x, self.network)
        self.check_shapes(name, x)
        if not self._runtime.ready:
            with making.LOCK:
                self._plan(x)  # which builds the network
                self._runtime.ready = True
        return x

    def check_gradient(self, x: Any) -> None:
        second_derivative(self._plan(_validation.check_rows("x", x)).undifferentiable)

    def is_constant(self, x: Any) -> bool:
        return self._plan(_validation.check_rows("x", x)).constant

    def check_shapes(self, name: str, x: Any) -> None:
        check_shapes(self.network, name, x)

    def prediction_cost(self, anchors: int, targets: int) -> dict[str, float]:
        plan = self._plans().known()
        if plan is None:
            raise ValueError(
                "The cost of a prediction is known once the kernel has been planned: call "
                "`kernel.plan(x)` with a few rows first."
            )
        pair = sum(share.cost.pair_flops for share in plan.shares) / 2
        costs = {"dual": float(anchors * (pair + targets))}
        if self.has_features:
            shapes = self._shapes(plan)
            parameters = sum(math.prod(shape[1:]) for shape in shapes)
            features = sum(map(math.prod, shapes))
            costs["primal"] = float(2 * parameters + targets * features)
        return costs

    def _require_features(self) -> None:
        if self.outputs == "full":
            raise ValueError(
                'A kernel with `outputs="full"` has no primal form yet. Use '
                '`outputs="sum"` or `outputs="trace"`.'
            )

    @tf.autograph.experimental.do_not_convert
    def _run(
        self,
        verb: str,
        rows: tuple[Any, ...],
        extra: Any,
        dtype: Any,
        out: Any = None,
    ) -> Any:
        """Run a verb of the feature map: inline while tracing, else as a function."""
        if dtype is not None and not isinstance(dtype, str | tf.DType):
            raise TypeError(
                "`dtype` must be the name of a type. (Kernel values between rows of two "
                "arrays are `cross(x1, x2)`.) Received: dtype of type "
                f"{type(dtype).__name__}"
            )
        if not tf.executing_eagerly():
            check_no_out(out)
            rows = keras.tree.map_structure(_finite, rows)
            with untouched(self.network):
                return self._work(rows[0], dtype).inline(verb, rows, extra)
        names = ("x",) if len(rows) == 1 else ("x1", "x2")
        rows = tuple(self._rows(name, x) for name, x in zip(names, rows, strict=True))
        self._check_weights()
        work = self._work(rows[0], dtype)
        if verb in ("gram", "cross"):
            values = getattr(work, verb)(*rows, out, self.fingerprint)
        else:
            extra = keras.tree.map_structure(tf.convert_to_tensor, extra)
            values = getattr(work, verb)(rows[0], *extra)
        if verb != "vjp":
            given = zip(names, rows, strict=True)
            check_values(self._outputs, shown_by(verb, values), *given)
        return values

    @property
    def shares(self) -> bool:
        return type(self) is NTK and self._runtime.pooled

    def shared(self, function: Any, key: str, fixed: bool, *arguments: Any) -> Any:
        return self._work(arguments[0], None).common(function, key, fixed, *arguments)

    def _outputs(self, x: Any) -> tf.Tensor:
        return self._work(x, None).over_slices("network_outputs", x)

    def _diagonal(self, x: Any) -> tf.Tensor:
        return self._work(x, "float64").diag(x)

    def _limit(self) -> int:
        return memory.default_limit(self.memory_limit)

    def _feature_map(self, x: Any, dtype: str | None) -> FeatureMap:
        return feature_map(self.network, self._plan(x), self.outputs, dtype)

    def _plan(self, x: Any) -> Plan:
        return self._plans().plan(x)

    def _plans(self) -> Plans:
        if self._identity is None:
            self._identity = Identity(self.network)
        identity, settings = self._identity, (self.outputs, self.method, self._places)
        return Plans(self._runtime, identity, self.network, *settings)

    def architecture(self) -> str:
        return self._plans().architecture()

    def _check_weights(self) -> None:
        self._finish_loading()
        for variable in self.network.weights:
            _validation.check_finite_weight(variable)

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        adapters.save(self.network, store)

    def load_own_variables(self, store: Any) -> None:
        # The network's own come after; see `weights_fingerprint`.
        self._adapted = adapters.load(store)
        frozen.freeze(self.network, self._frozen)

    def weights_fingerprint(self) -> str:
        self._finish_loading()
        return super().weights_fingerprint()

    def _finish_loading(self) -> None:
        """Put back what Keras merges when it saves layers with LoRA."""
        saved, self._adapted = self._adapted, {}
        if saved:
            adapters.restore(self.network, saved)

    def parts(self) -> list[Any]:
        return [self.network]

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        with ties.writing(self):
            config["network"] = ties.written(self.network)
        config["outputs"] = self.outputs
        config["method"] = self.method
        config["memory_limit"] = self.memory_limit
        config["layers"] = self._places
        config["frozen"] = frozen.numbers(self.network)
        return config

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> NTK:
        config = dict(config)
        with ties.reading():
            config["network"] = ties.read(config["network"], custom_objects)
        places, layers = config.pop("frozen", []), config.pop("layers", None)
        kernel = cls(**config)
        kernel._places = None if layers is None else tuple(layers)
        kernel._frozen = places
        frozen.freeze(kernel.network, places)
        return kernel


def _finite(x: Any) -> tf.Tensor:
    x = tf.convert_to_tensor(x)
    return tf.debugging.check_numerics(x, _NOT_FINITE) if x.dtype.is_floating else x

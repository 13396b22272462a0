"""Does the equivalence of networks and kernels hold? Gaps between what both predict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_kare import _rows, _validation
from keras_kare.callbacks import spectrum
from keras_kare.diagnostics.self_training import SelfTraining, in_a_column, regression
from keras_kare.kernels import InfiniteWidth
from keras_kare.kernels.structured.untouched import walk

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEARNERS = (
    "network",
    "linearised",
    "ntk_start",
    "ntk_end",
    "infinite_ntk",
    "infinite_nngp",
)
"""What is compared, in the order of a table."""

ACTIVATIONS = ("relu", "gelu")
"""Of Keras, for which kernels of infinite width are known."""


@dataclass(frozen=True)
class Equivalence:
    """What networks and the kernels that belong to them predict.

    Attributes:
        rows: One dict a network and learner: `network` (its name), `depth`, `width`,
            `learner`, `error` (mean squared error on the test rows), `gap` (root mean
            square of its difference from the trained network, in units of the network's
            own root mean square), `train_error` of the network, and `drift` of its NTK.
        skipped: Why learners are missing, by network.
    """

    rows: list[dict[str, Any]]
    skipped: dict[str, str] = field(default_factory=dict)

    def table(self) -> str:
        """Return a table in Markdown, a line a network and learner."""
        names = ("network", "depth", "width", "learner", "error", "gap", "drift")
        lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
        for row in self.rows:
            cells = [
                f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name])
                for name in names
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the gap of each learner over the width of networks; a dash a depth.

        Args:
            ax: Where to. Defaults to axes of a new figure.
        """
        if ax is None:
            from matplotlib.figure import Figure

            ax = Figure(figsize=(8.0, 4.0), layout="constrained").subplots()
        dashes = ("-", "--", "-.", ":")
        depths = sorted({row["depth"] for row in self.rows}, key=str)
        for i, learner in enumerate(LEARNERS[1:]):
            for depth, dash in zip(depths, dashes * len(depths), strict=False):
                chosen = [
                    (row["width"], row["gap"])
                    for row in self.rows
                    if row["learner"] == learner and row["depth"] == depth
                ]
                if chosen:
                    label = f"{learner.replace('_', ' ')}, depth {depth}"
                    ax.plot(
                        *zip(*sorted(chosen), strict=True), dash, c=f"C{i}", label=label
                    )
        ax.set(xscale="log", yscale="log", xlabel="Width (units)")
        ax.set_ylabel("Gap to the trained network (no unit)")
        ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.02, 0.5))
        return ax


def equivalence(
    network: keras.Model | Sequence[keras.Model],
    x: Any,
    y: Any,
    x_test: Any,
    y_test: Any,
    steps: int = 3000,
    infinite: InfiniteWidth | None = None,
) -> Equivalence:
    """Train networks, and compare them with the kernel machines that are to be like them.

    Each network trains by gradient descent on the squared error of all rows, at a rate of
    a quarter over the largest eigenvalue of `K/n`. Beside it: the network that is linear
    in its weights, after as many steps, in closed form; regression without a ridge by its
    NTK at the start and at the end; and by the NTK and the NNGP kernel of infinite width,
    where they are known. (Regression knows nothing of what the network says at its start;
    its linearisation does.) **The networks' weights move.**

    Args:
        network: A built `keras.Model`, or a list of them, such as of several widths.
        x: Training rows, `(n, ...)`.
        y: Targets, `(n,)` or `(n, c)`, a column an output. Errors and gaps are means over
            all; each pair of outputs has an NTK of its own, which makes a matrix of `n c`
            rows. (Of infinite width, outputs have nothing to do with each other.)
        x_test: Test rows, `(m, ...)`.
        y_test: Their targets.
        steps: Of gradient descent. Defaults to `3000`.
        infinite: The kernel of the networks' infinite width, of which both kinds are taken
            at its present variables. Defaults to that of networks
            of `Dense` layers alone, with one activation, ReLU or GELU, and a linear end:
            of `weight_std=√2` for ReLU, else 1, and no bias.

    Returns:
        An `Equivalence`: `rows`, `table()`, `plot()`.

    Raises:
        TypeError: If one is no `keras.Model`, or `infinite` no `InfiniteWidth`.
        ValueError: For bad input, named, and a list without networks.

    Example:

    ```python
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype("float32")
    y = np.sin(x[:, :1])
    dense = keras.layers.Dense
    networks = [
        keras.Sequential([keras.Input((3,)), dense(width, "relu"), dense(1)])
        for width in (16, 64)
    ]
    found = kk.diagnostics.equivalence(networks, x[:40], y[:40], x[40:], y[40:], steps=100)
    print(found.table())
    ```

    References:
        - Lee et al., "Wide neural networks of any depth evolve as linear models under
          gradient descent", arXiv:1902.06720.
        - "Issues with neural tangent kernel approach to neural networks",
          arXiv:2501.10929.
    """
    networks = _networks(network)
    if infinite is not None and not isinstance(infinite, InfiniteWidth):
        raise TypeError(
            "`infinite` must be a `keras_kare.kernels.InfiniteWidth`, or None. "
            f"Received: {infinite!r} of type {type(infinite).__name__}"
        )
    _validation.check_whole("steps", steps, 1)
    x, x_test = (_validation.check_rows(n, v) for n, v in (("x", x), ("x_test", x_test)))
    y = _validation.check_targets("y", y, len(keras.tree.flatten(x)[0]))
    y_test = _validation.check_targets("y_test", y_test, len(keras.tree.flatten(x_test)[0]))
    for each in networks:
        outputs = each(_rows.take(x, slice(2))).shape
        if not tuple(outputs)[1:] == y.shape[1:] == y_test.shape[1:]:
            raise ValueError(
                "`network` must have an output for each column of `y`, and `y_test` as "
                f"many columns. Received: {each.name!r} with outputs {tuple(outputs)}, "
                f"y of shape {y.shape}, y_test of shape {y_test.shape}"
            )
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for each in networks:
        kernel = _of_infinite_width(each) if infinite is None else infinite
        if isinstance(kernel, str):
            skipped[each.name] = kernel
        rows += _compared(each, x, y, x_test, y_test, steps, kernel)
    return Equivalence(rows, skipped)


def _networks(network: Any) -> list[keras.Model]:
    """Return networks as a list of at least one."""
    networks = list(network) if isinstance(network, Iterable) else [network]
    if not networks:
        raise ValueError(
            "`network` must be a `keras.Model`, or a list of at least one. "
            f"Received: network={network!r}"
        )
    for each in networks:
        if not isinstance(each, keras.Model):
            raise TypeError(
                "`network` must be a `keras.Model`, or a list of them. "
                f"Received: {each!r} of type {type(each).__name__}"
            )
    return networks


def _compared(
    network: keras.Model,
    x: Any,
    y: np.ndarray,
    x_test: Any,
    y_test: np.ndarray,
    steps: int,
    infinite: InfiniteWidth | str,
) -> list[dict[str, Any]]:
    descent = SelfTraining(network, x, y, x_test)
    found = {"linearised": descent.linearised(steps)}
    found["ntk_start"] = regression(descent.gram, descent.cross, descent.y)
    descent.run(steps)
    fitted, found["network"] = descent.predict()
    gram, cross = descent.kernels()
    found["ntk_end"] = regression(gram, cross, descent.y)
    if isinstance(infinite, InfiniteWidth):
        for kind in ("ntk", "nngp"):
            kernel = _of_kind(infinite, kind)
            wide = np.array(kernel.gram(x, dtype="float64"))
            across = np.array(kernel.cross(x_test, x, dtype="float64"))
            found[f"infinite_{kind}"] = in_a_column(regression(wide, across, y))
    drift = spectrum.drift(gram, descent.gram)
    size = np.sqrt(np.mean(found["network"] ** 2))
    dense = [p for p in walk(network) if isinstance(p, keras.layers.Dense)]
    return [
        {
            "network": network.name,
            "depth": max(0, len(dense) - 1),
            "width": max((p.units for p in dense[:-1]), default=0),
            "learner": learner,
            "error": float(np.mean((found[learner] - in_a_column(y_test)) ** 2)),
            "gap": float(np.sqrt(np.mean((found[learner] - found["network"]) ** 2)) / size),
            "train_error": float(np.mean((fitted - descent.y) ** 2)),
            "drift": drift,
        }
        for learner in LEARNERS
        if learner in found
    ]


def _of_kind(kernel: InfiniteWidth, kind: str) -> InfiniteWidth:
    """Return a kernel of infinite width as NTK or NNGP, at its present variables."""
    found = InfiniteWidth.from_config({**kernel.get_config(), "kind": kind})
    if kernel.built:
        found.build((None, kernel.columns))
        found.set_weights(kernel.get_weights())
    return found


def _of_infinite_width(network: keras.Model) -> InfiniteWidth | str:
    """Return the kernel of a dense network's infinite width; or why there is none."""
    layers = [p for p in network.layers if not isinstance(p, keras.layers.InputLayer)]
    if not layers or not all(type(p) is keras.layers.Dense for p in layers):
        return "not of `Dense` layers alone: pass `infinite`"
    names = {keras.activations.serialize(p.activation) for p in layers[:-1]}
    if keras.activations.serialize(layers[-1].activation) != "linear" or len(names) != 1:
        return "no linear end, or several activations: pass `infinite`"
    (name,) = names
    if name not in ACTIVATIONS:
        return f"no kernel of infinite width is known for {name}"
    std = 2.0**0.5 if name == "relu" else 1.0
    return InfiniteWidth(len(layers) - 1, str(name), weight_std=std)

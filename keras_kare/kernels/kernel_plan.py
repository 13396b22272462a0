"""What computing a kernel will take, as a table: paths, operations, memory, tiles."""

from __future__ import annotations

from dataclasses import dataclass

from keras_kare.kernels.memory import in_words
from keras_kare.kernels.sizes import Sizes
from keras_kare.kernels.structured.plan import Plan


@dataclass(frozen=True)
class LayerPlan:
    """The part of one group of variables in a kernel plan.

    Attributes:
        variables: Their paths.
        path: `"products"`: per-example gradients are written out and multiplied.
            `"positions"`: inputs and output gradients meet position by position.
            `"lookup"`: rows meet in the table entries that both use.
            `"jacobian"`: the plain Jacobian.
        flops: Floating-point operations of the products for all rows (symmetric
            halves once), without the network's own passes.
        bytes: Held for all rows while they are multiplied.
        fallback: Whether they take the plain Jacobian, since they are not proven to be
            served by a layer rule alone.
        why: The reason of a fallback: `"no layer rule"`, `"another road"` (tied weights,
            control flow, compiled functions, custom gradients), `"rows not first"`, `"rule
            disagrees"` or `"rule not tried"`; else empty.
    """

    variables: tuple[str, ...]
    path: str
    flops: float
    bytes: float
    fallback: bool
    why: str = ""


@dataclass(frozen=True)
class KernelPlan:
    """The way a Gram matrix will be computed, and what it will take.

    `print(kernel.plan(x))` shows it as a table.

    Attributes:
        rows: Number of rows, `n`.
        layers: One entry a group of variables.
        tile: Rows of a tile; `n` where all rows go at once.
        panel: Rows whose features are held at once.
        memory: Bytes that the work is expected to hold beside the result.
        memory_limit: Bytes that it may hold.
        result: Bytes of the result.
    """

    rows: int
    layers: tuple[LayerPlan, ...]
    tile: int
    panel: int
    memory: float
    memory_limit: int
    result: float

    @property
    def flops(self) -> float:
        """The floating-point operations of all layers."""
        return sum(layer.flops for layer in self.layers)

    def __str__(self) -> str:
        head = ("variables", "path", "GFLOP", "held", "fallback")
        lines = [
            (
                ", ".join(layer.variables),
                layer.path,
                f"{layer.flops / 1e9:.4g}",
                in_words(layer.bytes),
                layer.why,
            )
            for layer in self.layers
        ]
        widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
        table = [
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
            for line in (head, *lines)
        ]
        how = (
            "all at once"
            if self.tile >= self.rows
            else f"in tiles of {self.tile}, features of {self.panel} rows held at once"
        )
        return "\n".join(
            [
                *table,
                f"{self.rows} rows, {how}: {self.flops / 1e9:.4g} GFLOP, about "
                f"{in_words(self.memory)} of memory (limit {in_words(self.memory_limit)}) "
                f"beside the result of {in_words(self.result)}",
            ]
        )


def kernel_plan(plan: Plan, sizes: Sizes, rows: int, limit: int) -> KernelPlan:
    """Plan a Gram matrix of so many rows."""
    whole = sizes.needs_no_tiles(rows, limit)
    pairs = rows**2 if whole else rows * (rows + 1) / 2
    tile = rows if whole else sizes.tile(rows, limit)
    panel = rows if whole else sizes.panel(rows, max(tile, 1), limit)
    itemsize = (
        0.0
        if not plan.shares
        else sizes.features / sum(s.cost.row_numbers for s in plan.shares)
    )
    layers = tuple(
        LayerPlan(
            tuple(v.path for v in s.variables),
            s.cost.path,
            s.cost.row_flops * rows + s.cost.pair_flops * pairs,
            s.cost.row_numbers * itemsize * rows,
            bool(s.why),
            s.why,
        )
        for s in plan.shares
    )
    memory = sizes.at_once(rows) if whole else sizes.in_tiles(tile) + sizes.features * panel
    return KernelPlan(rows, layers, tile, panel, memory, limit, sizes.result * rows**2)

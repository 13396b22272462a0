"""Where kernel values go: a tensor, an array, or a file of tiles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keras_kare.kernels import disk, memory, tiles
from keras_kare.kernels.memory import in_words


def fill(
    out: Any,
    shape: tuple[int, ...],
    dtype: np.dtype,
    engine: tiles.Engine,
    grid: tiles.Grid,
    contents: Callable[[], str],
) -> Any:
    """Compute a matrix in tiles, into a new tensor or into `out`, and return that.

    Args:
        out: As in `NTK.gram`.
        shape: Of the matrix.
        dtype: Of its numbers.
        engine: What a tile is computed with.
        grid: The tiles.
        contents: Makes a hash of what the values depend on, for a file.
    """
    if out is None:
        _check_result(shape, dtype)
        target = tiles.TensorTarget(shape, dtype, grid.symmetric)
        tiles.compute(engine, grid, target)
        return target.result()
    if isinstance(out, np.ndarray):
        _check_array(out, shape)
        disk.allocate_mapped(out)
        tiles.compute(engine, grid, tiles.ArrayTarget(out, grid.symmetric))
        return out
    path = _check_path(out)
    file = disk.DiskTarget(path, shape, dtype, contents(), grid.symmetric, grid.tile)
    try:
        tiles.compute(engine, disk.finish_grid(grid, file), file)
    except KeyboardInterrupt as stopped:
        stopped.add_note(
            f"{str(path)!r} holds what was done. The same call goes on from there."
        )
        raise
    return file.array


def check_no_out(out: Any) -> None:
    """Refuse a place for the result where there is no result yet."""
    if out is not None:
        raise ValueError(
            "`out` is for calls outside of a `tf.function`. Received: "
            f"out={out!r} while a function is being traced"
        )


def _check_result(shape: tuple[int, ...], dtype: np.dtype) -> None:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    free = memory.available()
    if size > free:
        raise MemoryError(
            f"The kernel values take {in_words(size)}, and {in_words(free)} are free. "
            'Write them to a file with `out="FILE.npy"`, or take fewer rows.'
        )


def _check_array(out: np.ndarray, shape: tuple[int, ...]) -> None:
    if out.shape != shape or out.dtype.kind != "f" or not out.flags.writeable:
        raise ValueError(
            f"`out` must be a writable floating-point array of shape {shape}. Received: "
            f"out of shape {out.shape} and type {out.dtype}"
            f"{'' if out.flags.writeable else ', read-only'}"
        )


def _check_path(out: Any) -> Path:
    if not isinstance(out, str | Path):
        raise ValueError(
            "`out` must be a NumPy array to fill, or the name of a `.npy` file. "
            f"Received: out of type {type(out).__name__}"
        )
    path = Path(out)
    if path.suffix != ".npy" or not path.resolve().parent.is_dir():
        raise ValueError(
            "`out` must name a `.npy` file in a folder that exists. "
            f"Received: out={str(out)!r}"
        )
    return path

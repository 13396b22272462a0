"""Tiles that go to a file, and stay done when the work is interrupted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare.kernels.memory import in_words
from keras_kare.kernels.tiles import ArrayTarget, Grid

SAVE_EVERY = 5.0
"""Seconds between two notes of what is done."""


class DiskTarget(ArrayTarget):
    """A `.npy` file, with a note beside it of which tiles are done.

    The note, `FILE.tiles.json`, names what the file holds: a call with the same
    kernel and the same rows goes on where the last one stopped.

    Args:
        path: The file.
        shape: Of the whole result.
        dtype: Of its numbers.
        contents: What the values depend on, as a hash.
        symmetric: Whether mirror images are written too.
        tile: Rows of a tile, where the file is new.

    Raises:
        ValueError: If the file holds something else.
        OSError: If the disk has no room for it.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        dtype: np.dtype,
        contents: str,
        symmetric: bool,
        tile: int,
    ):
        self.note_path = Path(f"{path}.tiles.json")
        self.path = path
        self._saved = time.monotonic()
        if path.exists():
            self._note = self._read_note(contents, shape, dtype)
            array = np.lib.format.open_memmap(path, mode="r+")
        else:
            self._note = {"contents": contents, "tile": tile, "done": []}
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            free = shutil.disk_usage(path.resolve().parent).free
            if size > free:
                raise OSError(
                    f"`out` needs {in_words(size)} on the disk of {str(path)!r}, which has "
                    f"{in_words(free)} free. Name a file on another disk, or take fewer "
                    "rows."
                )
            array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
            self._save()
        super().__init__(array, symmetric)
        self.tile: int = self._note["tile"]
        self._done = {tuple(pair) for pair in self._note["done"]}

    def done(self, i: int, j: int) -> bool:
        return (i, j) in self._done

    def write(self, i: int, j: int, rows: slice, columns: slice, values: tf.Tensor) -> None:
        super().write(i, j, rows, columns, values)
        self._done.add((i, j))
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.close()

    def close(self) -> None:
        """Values reach the disk before the note that they are there."""
        self.array.flush()
        self._note["done"] = sorted(self._done)
        self._save()
        self._saved = time.monotonic()

    def _save(self) -> None:
        new = Path(f"{self.note_path}.new")
        new.write_text(json.dumps(self._note))
        os.replace(new, self.note_path)

    def _read_note(
        self, contents: str, shape: tuple[int, ...], dtype: np.dtype
    ) -> dict[str, Any]:
        note: dict[str, Any] = {}
        with contextlib.suppress(OSError, json.JSONDecodeError):
            note = json.loads(self.note_path.read_text())
        if note.get("contents") != contents:
            raise ValueError(
                f"`out` names a file that holds something else than this kernel's values "
                f"for these rows (other rows, weights, type, or no kernel values): "
                f"{str(self.path)!r}. Remove it, or name another file."
            )
        held = np.load(self.path, mmap_mode="r")
        if held.shape != shape or held.dtype != dtype:
            raise ValueError(
                f"`out` names a file of shape {held.shape} and type {held.dtype}, where "
                f"{shape} and {dtype} are needed: {str(self.path)!r}. Remove it."
            )
        return note


def contents_of(*parts: Any) -> str:
    """A hash of strings and of nested arrays."""
    digest = hashlib.blake2b(digest_size=16)
    for part in keras.tree.flatten(parts):
        if isinstance(part, str):
            digest.update(part.encode())
        else:
            array = np.ascontiguousarray(part)
            digest.update(f"{array.shape}{array.dtype}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def finish_grid(grid: Grid, target: DiskTarget) -> Grid:
    """The grid that the file was begun with."""
    return Grid(
        grid.rows,
        grid.columns,
        target.tile,
        max(grid.panel, target.tile),
        grid.symmetric,
    )

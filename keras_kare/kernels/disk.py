"""Tiles that go to a file, and stay done when the work is interrupted."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_kare.kernels.locking import LockedFile
from keras_kare.kernels.memory import in_words
from keras_kare.kernels.note import Note, Tile, checksum
from keras_kare.kernels.tiles import ArrayTarget, Grid, mirrored

SAVE_EVERY = 5.0
"""Seconds between two notes of what is done."""


class DiskTarget(ArrayTarget):
    """A `.npy` file as a target, with a note beside it of which tiles are done.

    The note, `FILE.tiles.json`, names what the file holds: a call with the same
    kernel and the same rows goes on where the last one stopped. It has a checksum of
    each tile; tiles that are not what was written are computed again.

    Args:
        path: The file.
        shape: Of the whole result.
        dtype: Of its numbers.
        contents: What the values depend on, as a hash.
        symmetric: Whether mirror images are written too.
        tile: Rows of a tile, where the file is new.

    Raises:
        ValueError: If the file holds something else, or is damaged beyond use.
        OSError: If the disk has no room for it, or another call is writing to it.
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
        self.path, self._note_path = path, Path(f"{path}.tiles.json")
        self._saved, self._written = time.monotonic(), False
        self._lock = LockedFile(path)
        try:
            if not self._is_finished(contents, shape, dtype, symmetric):
                self._lock.write_alone()
                note = self._old_note(contents)
                if note is None:
                    note = Note(self._note_path, contents, tile, {})
                    super().__init__(self._made(note, shape, dtype), symmetric)
                else:
                    super().__init__(self._opened(shape, dtype), symmetric)
                    self._allocate()
                    self._forget_damaged(note)
                self._note = note
        except BaseException:
            self._lock.close()
            raise
        self.tile = self._note.tile

    def _is_finished(
        self, contents: str, shape: tuple[int, ...], dtype: np.dtype, symmetric: bool
    ) -> bool:
        """Tell whether all is there, and sound; others may read it at the same time."""
        note = self._old_note(contents)
        if note is None:
            return False
        super().__init__(self._opened(shape, dtype), symmetric)
        self._note = note
        needed = list(self._tiles(note))
        return all(tile in note.done for tile in needed) and all(
            self._is_sound(note, *tile) for tile in needed
        )

    def done(self, i: int, j: int) -> bool:
        return (i, j) in self._note.done

    def write(self, i: int, j: int, rows: slice, columns: slice, values: tf.Tensor) -> None:
        super().write(i, j, rows, columns, values)
        self._note.done[i, j] = checksum(self.array[rows, columns])
        self._written = True
        if time.monotonic() - self._saved > SAVE_EVERY:
            self._save()

    def close(self) -> None:
        try:
            if self._written:
                self._save()
        finally:
            self._lock.close()

    def _save(self) -> None:
        """Save values to the disk before the note that they are there."""
        self.array.flush()
        self._note.save()
        self._saved = time.monotonic()

    def _old_note(self, contents: str) -> Note | None:
        """Return the note of a file to go on with; `None` for a new file."""
        if self._lock.size == 0:
            return None
        note = Note.read(self._note_path)
        if note is None or note.contents != contents:
            raise ValueError(
                f"`out` names a file that holds something else than this kernel's values "
                f"for these rows (other rows, weights, type, or no kernel values), or "
                f"whose note {self._note_path.name!r} is damaged: {str(self.path)!r}. "
                "Remove it, or name another file."
            )
        return note

    def _opened(self, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
        """Open the file, which must be all there."""
        try:
            array = np.lib.format.open_memmap(self.path, mode="r+")
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(
                f"`out` names a damaged or truncated `.npy` file: {str(self.path)!r}. "
                f"Remove it, or name another file. Received: {error}"
            ) from error
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(
                f"`out` names a file of shape {array.shape} and type {array.dtype}, where "
                f"{shape} and {dtype} are needed: {str(self.path)!r}. Remove it."
            )
        return array

    def _made(self, note: Note, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
        """Make a new file, with room on the disk for all of it."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        try:
            free = shutil.disk_usage(self.path.resolve().parent).free
            if size > free:
                raise OSError(
                    f"`out` needs {in_words(size)} on the disk of {str(self.path)!r}, "
                    f"which has {in_words(free)} free. Name a file on another disk, or "
                    "take fewer rows."
                )
            note.save()
            array = np.lib.format.open_memmap(
                self.path, mode="w+", dtype=dtype, shape=shape
            )
            self._allocate()
        except OSError:
            self.path.unlink()
            note.path.unlink(missing_ok=True)
            raise
        return array

    def _allocate(self) -> None:
        try:
            allocate(self._lock.file.fileno(), self._lock.size)
        except OSError as error:
            raise OSError(
                error.errno,
                f"`out` needs {in_words(self._lock.size)} on its disk, which cannot be had "
                f"({error.strerror}). Name a file on another disk, or take fewer rows",
                str(self.path),
            ) from error

    def _tiles(self, note: Note) -> Iterator[Tile]:
        rows, columns = self.array.shape[:2]
        for _, j, tiles in Grid(
            rows, columns, note.tile, note.tile, self.symmetric
        ).pairs():
            for i in tiles:
                yield i, j

    def _forget_damaged(self, note: Note) -> None:
        """Forget tiles that are not what was written: they are computed again."""
        known = [tile for tile in self._tiles(note) if tile in note.done]
        sound = {tile: note.done[tile] for tile in known if self._is_sound(note, *tile)}
        if lost := len(known) - len(sound):
            warnings.warn(
                f"{lost} of {len(known)} tiles in {str(self.path)!r} are "
                "not what was written there (a damaged disk, or another program): they "
                "are computed again.",
                RuntimeWarning,
                stacklevel=9,
            )
        note.done = sound

    def _is_sound(self, note: Note, i: int, j: int) -> bool:
        rows, columns = (slice(k * note.tile, (k + 1) * note.tile) for k in (i, j))
        block = self.array[rows, columns]
        if checksum(block) != note.done[i, j]:
            return False
        if not self.symmetric or i == j:
            return True
        return bool(np.array_equal(self.array[columns, rows], mirrored(block)))


def allocate(file: int, size: int) -> None:
    """Reserve blocks of the disk for an open file, which may be sparse.

    Writing to a mapped file whose disk is full kills the process (SIGBUS).

    Raises:
        OSError: If the disk has no room for them.
    """
    if not size or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise  # those: a file system that cannot reserve


def allocate_mapped(out: np.ndarray) -> None:
    """Reserve the disk for a user's mapped array, as `allocate` does; skip other arrays."""
    if not isinstance(out, np.memmap) or out.mode not in ("r+", "w+"):
        return
    name = out.filename
    if name is None or not os.path.exists(name):
        return
    try:
        with open(name, "r+b") as file:
            allocate(file.fileno(), os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise OSError(
            error.errno,
            f"`out` is mapped from a file whose disk has no room ({error.strerror}). Map a "
            "file on another disk, or take fewer rows",
            str(name),
        ) from error


def contents_of(*parts: Any) -> str:
    """Return a hash of strings and of nested arrays, with the names that they have."""
    digest = hashlib.blake2b(digest_size=16)

    def add(part: Any) -> None:
        if isinstance(part, str):
            digest.update(part.encode())
        elif isinstance(part, dict):
            for key in sorted(part):
                add(f"{key!r}:")
                add(part[key])
        elif isinstance(part, list | tuple):
            for each in part:
                add(each)
        else:
            array = np.ascontiguousarray(part)
            if array.dtype.hasobject:  # whose bytes would be addresses
                add(list(map(repr, array.flat)))
                array = np.array(array.shape)
            digest.update(f"{array.shape}{array.dtype}".encode())
            digest.update(array.tobytes())

    add(parts)
    return digest.hexdigest()


def finish_grid(grid: Grid, target: DiskTarget) -> Grid:
    """Return the grid that the file was begun with."""
    return Grid(
        grid.rows,
        grid.columns,
        target.tile,
        max(grid.panel, target.tile),
        grid.symmetric,
    )

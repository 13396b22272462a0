"""The note beside a file of tiles: what the file holds, and what of it is done."""

from __future__ import annotations

import json
import os
import uuid
import zlib
from pathlib import Path
from typing import Any

import numpy as np

Tile = tuple[int, int]


class Note:
    """A file of notes, `FILE.tiles.json`.

    Args:
        path: Of the note.
        contents: A hash of what the values depend on.
        tile: Rows of a tile.
        done: A checksum for each tile that is in the file.
    """

    def __init__(self, path: Path, contents: str, tile: int, done: dict[Tile, int]):
        self.path, self.contents, self.tile, self.done = path, contents, tile, done

    @classmethod
    def read(cls, path: Path) -> Note | None:
        """Read what was saved; `None` where there is nothing, or nothing of a note."""
        try:
            kept = json.loads(path.read_text())
            done = {(i, j): total for i, j, total in kept["done"]}
            note = cls(path, kept["contents"], kept["tile"], done)
        except (OSError, ValueError, TypeError, KeyError):
            return None
        numbers = [note.tile, *(n for tile, total in done.items() for n in (*tile, total))]
        fine = all(isinstance(n, int) and n >= 0 for n in numbers) and note.tile > 0
        return note if fine and isinstance(note.contents, str) else None

    def save(self) -> None:
        """Replace what was saved, at once: a killed process leaves the one or the other."""
        new = Path(f"{self.path}.{os.getpid()}.{uuid.uuid4().hex}.new")
        done = [[*tile, total] for tile, total in sorted(self.done.items())]
        kept: dict[str, Any] = {"contents": self.contents, "tile": self.tile, "done": done}
        try:
            new.write_text(json.dumps(kept))
            os.replace(new, self.path)
        except OSError as error:
            new.unlink(missing_ok=True)
            raise OSError(
                error.errno,
                f"The note beside `out` cannot be written ({error.strerror}). Free some of "
                "the disk, or name a file elsewhere",
                str(self.path),
            ) from error


def checksum(values: np.ndarray) -> int:
    """Return a checksum of the bytes of some values, in their order."""
    return zlib.crc32(np.ascontiguousarray(values).data.cast("B"))

"""One writer of a file at a time."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # a system without it: writers are not told of each other
    fcntl = None  # type: ignore[assignment]


PATIENCE = 1.0
"""Seconds to wait for one who only looks whether all is there."""


class LockedFile:
    """A file that is open, and locked among processes that use this class.

    The system gives a lock back when its process ends, however that ends.

    Args:
        path: The file; made, empty, where there is none.

    Raises:
        OSError: If another process, or another call in this one, writes to it.
    """

    def __init__(self, path: Path):
        self.path = path
        self.file = _opened(path)
        self._lock(exclusive=False)

    def _lock(self, exclusive: bool) -> None:
        if fcntl is None:
            return
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        until = time.monotonic() + PATIENCE
        while not self._try(kind):
            if time.monotonic() > until:
                self.file.close()
                raise OSError(
                    f"`out` names a file that another call is writing to: "
                    f"{str(self.path)!r}. Wait until that ends, or name another file."
                )
            time.sleep(0.05)

    def _try(self, kind: int) -> bool:
        try:
            fcntl.flock(self.file, kind | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            fcntl.flock(self.file, fcntl.LOCK_UN)  # or two readers wait for each other
            return False
        except OSError:
            return True  # a file system without locks
        if self.path.exists() and os.path.samestat(
            os.fstat(self.file.fileno()), self.path.stat()
        ):
            return True
        self.file.close()  # removed by one who had it first
        self.file = _opened(self.path)
        return False

    def write_alone(self) -> None:
        """Keep all others from reading or writing the file from now on.

        Raises:
            OSError: If another call does.
        """
        self._lock(exclusive=True)

    @property
    def size(self) -> int:
        """The length of the file in bytes."""
        return os.fstat(self.file.fileno()).st_size

    def close(self) -> None:
        """Give the lock back, also where a forked process still has the file open."""
        if fcntl is not None and not self.file.closed:
            with contextlib.suppress(OSError):
                fcntl.flock(self.file, fcntl.LOCK_UN)
        self.file.close()


def _opened(path: Path) -> IO[bytes]:
    """Open a file to read and write, made if need be, nothing cut off."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")

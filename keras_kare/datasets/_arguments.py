"""What the loaders ask of their arguments, of the data's folder and of extras."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from keras_kare._validation import check_whole, is_number

VARIABLE = "KERAS_KARE_DATA"


def check_seed(value: Any) -> None:
    """Refuse what `np.random.RandomState` does not take as a seed."""
    check_whole("seed", value, 0)
    if value >= 2**32:
        raise ValueError(
            "`seed` must be below 2**32, as np.random.RandomState asks. "
            f"Received: seed={value!r}"
        )


def check_fraction(name: str, value: Any) -> None:
    """Refuse what is not strictly between 0 and 1."""
    if not is_number(value) or not 0.0 < value < 1.0:
        raise ValueError(
            f"`{name}` must be a number between 0 and 1, both excluded. "
            f"Received: {name}={value!r}"
        )


def data_folder(name: str, folder: str | os.PathLike[str] | None) -> Path:
    """Return the folder of the data: the argument, or `name` in `KERAS_KARE_DATA`'s.

    Raises:
        ValueError: If neither names anything.
        FileNotFoundError: If it is no folder.
    """
    if folder is not None:
        path, received = Path(folder), f"folder={os.fspath(folder)!r}"
    elif os.environ.get(VARIABLE):
        path = Path(os.environ[VARIABLE]) / name
        received = f"{VARIABLE}={os.environ[VARIABLE]!r}, folder=None"
    else:
        raise ValueError(
            f"`folder` must name the folder of the {name} data, or the environment "
            f"variable {VARIABLE} the folder that holds {name}/. Received: folder=None, "
            f"{VARIABLE} unset"
        )
    if not path.is_dir():
        raise FileNotFoundError(
            f"`folder` must be a folder of {name} data, and {path} is none. Received: "
            f"{received}"
        )
    return path


def extra(module: str, package: str, extras: str, needed_by: str) -> Any:
    """Import a module of an optional package.

    Raises:
        ImportError: If it is not installed, with what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"`keras_kare.datasets.{needed_by}` needs {package}: "
            f'`pip install "keras_kare[{extras}]"`. Received: {error}'
        ) from error

"""The house: each room of the package imports from rooms below it only."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import keras_kare as kk

PACKAGE = Path(kk.__file__).parent

ORDER = (
    "_version",
    "_backend",
    "_sentences",
    "_text",
    "_arrays",
    "_validation",
    "_labels",
    "_rows",
    "_progress",
    "_traced_once",
    "_linalg",
    "kernels",
    "solvers",
    "risk",
    "losses",
    "_step",
    "metrics",
    "machine",
    "mkl",
    "layers",
    "models",
    "callbacks",
    "datasets",
    "diagnostics",
    "recipes",
    "sklearn",
    "experiments",
    "__init__",
)
"""From the ground to the roof, which is what `import keras_kare` runs."""


def imported(source: str, module: str) -> Iterator[str]:
    """Full names of what a module imports, wherever in it, by each form of import.

    Args:
        source: Its text.
        module: Its full name, that of a package with `.__init__` at its end.
    """
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = [*start, *(node.module or "").split(".")] if node.module else start
            yield from (".".join([*base, alias.name]) for alias in node.names)


def room_of(name: str) -> str | None:
    """The room of a full name; `None` outside of the package."""
    package, *rest = name.split(".")
    if package != "keras_kare":
        return None
    return rest[0] if rest and rest[0] in ORDER else "__init__"


def upwards(source: str, module: str) -> list[str]:
    """What a module imports from rooms above its own."""
    own = ORDER.index(room_of(module))
    found = [(name, room_of(name)) for name in imported(source, module)]
    return [name for name, room in found if room and ORDER.index(room) > own]


def modules() -> list[str]:
    files = [path.relative_to(PACKAGE.parent) for path in sorted(PACKAGE.rglob("*.py"))]
    return [".".join(path.with_suffix("").parts) for path in files]


def test_every_room_has_its_place():
    rooms = {name.split(".")[1] for name in modules()}
    assert rooms == set(ORDER)


@pytest.mark.parametrize("module", modules())
def test_rooms_import_downwards(module):
    source = (PACKAGE.parent / module.replace(".", "/")).with_suffix(".py").read_text()
    assert not upwards(source, module)


@pytest.mark.parametrize(
    "planted",
    [
        "import keras_kare.models",
        "import keras_kare.models.rows as rows",
        "from keras_kare import models",
        "from keras_kare import KAREModel",
        "from keras_kare.models import KAREModel",
        "from keras_kare.models.rows import Rows",
        "from ..models import rows",
        "from .. import models",
        "import keras_kare",
        "def late():\n    from keras_kare.models import rows",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import keras_kare.models",
    ],
)
def test_an_import_upwards_is_found(planted):
    assert upwards(planted, "keras_kare.solvers.system")
    assert upwards(planted, "keras_kare.solvers.__init__")


@pytest.mark.parametrize(
    "allowed",
    [
        "from keras_kare import _validation",
        "from keras_kare.kernels import NTK",
        "from ..kernels import ntk",
        "from .solution import Solution",
        "import numpy",
    ],
)
def test_others_are_not(allowed):
    assert not upwards(allowed, "keras_kare.solvers.system")


@pytest.mark.parametrize("module", modules())
def test_no_circle_is_broken_for_types(module):
    """What is imported for types alone is what takes long to import, and not ours."""
    path = (PACKAGE.parent / module.replace(".", "/")).with_suffix(".py")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            names = imported(ast.unparse(node.body), module)
            assert not [name for name in names if name.startswith("keras_kare")]


def classes():
    """Classes of the package, each in the module that defines it."""
    for info in pkgutil.walk_packages([str(PACKAGE)], "keras_kare."):
        if info.name.endswith("__main__"):
            continue  # which runs when it is imported
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if inspect.isclass(value) and value.__module__ == info.name:
                yield value


def called_on_self(kind):
    """Names of the methods that a class calls on itself, and what it is."""
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kind)))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of = node.func.value
            if isinstance(of, ast.Name) and of.id in ("self", "cls"):
                yield node.func.attr


def set_on_self(kind):
    """Names of the attributes that a class and its bases set on themselves."""
    for base in kind.__mro__:
        if not base.__module__.startswith("keras_kare"):
            continue
        yield from getattr(base, "__annotations__", {})
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(base)))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                yield node.attr


def only_of_subclasses(kind):
    known = set(set_on_self(kind))
    return [n for n in called_on_self(kind) if not hasattr(kind, n) and n not in known]


def test_no_class_calls_a_method_that_only_its_subclass_has():
    found = {kind.__qualname__: only_of_subclasses(kind) for kind in classes()}
    assert not {name: methods for name, methods in found.items() if methods}


def test_such_a_call_is_found():
    assert only_of_subclasses(Upper) == ["lower"]
    assert not only_of_subclasses(Lower)


class Upper:
    def upper(self):
        return self.lower()


class Lower(Upper):
    def lower(self):
        return self.upper()

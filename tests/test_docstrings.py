"""Docstrings are sentences: what a function does, not a noun that its reader must guess."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import keras_kare as kk

PACKAGE = Path(kk.__file__).parent

NO_VERBS = frozenset(
    "a about all an as at between bytes by each entries few for from how if in inputs it "
    "its mean names no not numbers of on one only other others rows several some such that "
    "the these this those to what when where whether which who with".split()
)
"""How docstrings of functions began that left their verb to the reader."""


def functions(source):
    """Functions with a docstring, but for properties, whose docstring names a thing."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
            decorators = map(ast.unparse, node.decorator_list)
            if not any("property" in decorator for decorator in decorators):
                yield node.name, text


def without_a_verb(source):
    """Names of the functions whose docstring does not begin with a verb."""
    for name, text in functions(source):
        first = re.split(r"[\s,.:;]", text)[0]
        if not first.isalpha() or not first[0].isupper() or first.lower() in NO_VERBS:
            yield f"{name}: {text.splitlines()[0]}"


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_docstrings_of_functions_say_what_they_do(path):
    assert not list(without_a_verb(path.read_text()))


@pytest.mark.parametrize("text", ["The same.", "Of networks.", "`K v`.", "Whether."])
def test_a_noun_alone_is_found(text):
    assert list(without_a_verb(f'def f():\n    """{text}"""'))
    assert not list(without_a_verb('def f():\n    """Return it."""'))

"""Sentences: errors of a graph, with ours alone, and a few of many names.

TensorFlow puts what a check in a graph says between dozens of lines on where it stands.
Texts of such checks are registered here, and found again in what TensorFlow makes of them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import tensorflow as tf

Method = TypeVar("Method", bound=Callable[..., Any])

FEW = 3
"""How many names a sentence lists."""

_BEGINNINGS: list[str] = []
"""How the registered texts begin."""

_OF_A_CALL = re.compile(
    r"Exception encountered when calling (\w+)\.call\(\)\.\n\n\x1b\[1m(.*)\x1b\[0m\n\n"
    r"Arguments received",
    re.DOTALL,
)
"""What Keras makes of an error in the `call` of a layer."""


def sentence(text: str) -> str:
    """Register what a check in a graph says, and return it.

    Args:
        text: The message; what stands before its first `{` must be enough to know it.
    """
    _BEGINNINGS.append(text.partition("{")[0])
    return text


def found_in(message: str) -> str | None:
    """Return the registered sentence in a message; `None` where there is none."""
    places = [(message.find(text), text) for text in _BEGINNINGS if text in message]
    if not places:
        return None
    place = min(places)[0]
    found, asserted = message[place:], message[:place].endswith("assertion failed: [")
    found = re.split(r"\n|\x1b\[0m| \[Op:", found)[0]
    if asserted:  # [text] [value] [value] …
        text, *values = found.split("] [")
        found = f"{text} {values[0]}" if values and text.endswith("=") else text
        found = found.removesuffix("]")
    return found.strip()


def listed(names: Sequence[str]) -> str:
    """Name a few, and count the others."""
    rest = len(names) - FEW
    few = ", ".join(names[:FEW])
    return f"{few} and {rest} more" if rest > 0 else few


def alone(method: Method) -> Method:
    """Make a method raise errors of ours with their sentence alone, of the same type.

    What TensorFlow and Keras said stays behind it, as its cause. Errors of others, such
    as of a layer of the user's own, are left as they are.
    """

    @functools.wraps(method)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except tf.errors.InvalidArgumentError as error:
            said = found_in(error.message)
            if said in (None, error.message):
                raise
            raise tf.errors.InvalidArgumentError(None, None, said) from error
        except ValueError as error:
            called = _OF_A_CALL.match(str(error))
            if called is None or called[1] != type(self).__name__:
                raise
            raise type(error)(called[2]) from error

    return cast(Method, guarded)


def first_line(error: Any) -> str:
    """Return our sentence in an error, or else the first line of what it says."""
    return found_in(str(error)) or str(error).partition("\n")[0]

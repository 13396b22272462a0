"""How much memory kernel values take, predicted before the work.

What a graph holds at its fullest is found by walking its operations in order, each
result alive from its own operation to its last use.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_kare.kernels.graphs import WHILES, ancestors, function_of

# Operations whose result is their first input under another name.
_ALIASES = frozenset({"Identity", "Reshape", "ExpandDims", "Squeeze", "StopGradient"})

_WITHOUT_A_SYSTEM = 4 * 2**30


def footprint(
    operations: Sequence[tf.Operation],
    sources: Iterable[tf.Tensor],
    results: Sequence[tf.Tensor],
    repeated_from: int,
    repeats: int,
    rows: int,
) -> float:
    """Return the bytes a row that a graph holds at its fullest, from sources to results.

    Args:
        operations: All operations of the graph, in the order of their making.
        sources: Tensors of `rows` rows; only what depends on them is counted.
        results: Tensors that are alive to the end.
        repeated_from: Operations from this number on are counted `repeats` times (the
            backward pass, once an output).
        repeats: See there.
        rows: Number of rows of the graph's inputs.
    """
    number = {op: i for i, op in enumerate(operations)}
    needed = ancestors(results)
    dependent = {t.ref() for t in sources}
    size: dict[Any, float] = {}
    root: dict[Any, Any] = {}
    for op in operations:
        if op not in needed or not any(t.ref() in dependent for t in op.inputs):
            continue
        for t in op.outputs:
            dependent.add(t.ref())
            first = op.inputs[0].ref()
            if op.type in _ALIASES and first in size:
                root[t.ref()] = root.get(first, first)
                size[t.ref()] = 0.0
            else:
                many = repeats if number[op] >= repeated_from else 1
                size[t.ref()] = many * _bytes(t)
    last: dict[Any, int] = {}
    for op in operations:
        if op in needed:
            for t in op.inputs:
                last[root.get(t.ref(), t.ref())] = number[op]
    for t in results:
        last[root.get(t.ref(), t.ref())] = len(operations)
    freed: dict[int, float] = {}
    held = peak = 0.0
    for op in operations:
        for t in op.outputs:
            if size.get(t.ref()):
                held += size[t.ref()]
                end = last.get(t.ref(), number[op])
                freed[end] = freed.get(end, 0.0) + size[t.ref()]
        peak = max(peak, held)
        held -= freed.pop(number[op], 0.0)
    return peak / rows


def _bytes(t: tf.Tensor) -> float:
    if t.dtype == tf.variant and t.op.type in WHILES:
        return _of_list(t.op, t.value_index)
    count = t.shape.num_elements() if t.shape.rank is not None else None
    return 0.0 if count is None else float(count * t.dtype.size)


def _of_list(loop: tf.Operation, place: int) -> float:
    """Return the bytes of the list that a loop fills, an item a round; 0 if unknown."""
    start = loop.inputs[place].op
    body = function_of(loop.graph, loop.get_attr("body").name)
    if start.type not in ("EmptyTensorList", "TensorListReserve") or body is None:
        return 0.0
    end = body.outputs[place].op
    item = {"TensorListPushBack": 1, "TensorListSetItem": 2}.get(end.type)
    rounds = tf.get_static_value(start.inputs[1])
    if item is None or rounds is None:
        return 0.0
    return max(0.0, float(rounds)) * _bytes(end.inputs[item])


def default_limit(limit: int | None = None, share: float = 0.5) -> int:
    """Return the bytes that may be held: the user's limit, else a share of what is free.

    Args:
        limit: What the user allows, if anything. Defaults to nothing.
        share: Of what is free now, on the GPU if there is one. Defaults to a half.
    """
    return int(share * available()) if limit is None else limit


def available() -> int:
    """Return the bytes that can still be had on the device that computes."""
    gpus = tf.config.list_logical_devices("GPU")
    if gpus:
        return _free_on(gpus[0])
    free = [_system(), _control_group()]
    return min((f for f in free if f is not None), default=_WITHOUT_A_SYSTEM)


def _free_on(gpu: Any) -> int:
    """Return TensorFlow's pool of the device, less what it has given out."""
    used = tf.config.experimental.get_memory_info(gpu.name.removeprefix("/device:"))
    return int(_pools()[gpu.name] - used["current"])


@functools.lru_cache(maxsize=1)
def _pools() -> dict[str, int]:
    """Return the bytes that TensorFlow may use of each device."""
    from tensorflow.python.client import device_lib  # the only list of these

    return {d.name: d.memory_limit for d in device_lib.list_local_devices()}


def _system() -> int | None:
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        names = getattr(os, "sysconf_names", {})
        if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
            return None
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    line = next((x for x in text.splitlines() if x.startswith("MemAvailable")), None)
    return None if line is None else int(line.split()[1]) * 2**10


def _control_group() -> int | None:
    """Return what a container may still use, where one is limited."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        stats = dict(x.split() for x in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if not limit.isdigit():
        return None
    return max(0, int(limit) - used + int(stats.get("inactive_file", 0)))


def in_words(size: float) -> str:
    """Return a number of bytes for people, as `3.2 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"

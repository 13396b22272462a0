"""Jobs over processes, one core each, with a progress bar and a budget."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from keras_kare.experiments.store import Job, Row, Store

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables that libraries read when they are loaded."""

Work = Callable[[Job], list[Row]]
"""A module's function from a job to its rows."""


def run(
    jobs: Sequence[Job],
    work: Work,
    store: Store,
    workers: int | None = None,
    budget: float | None = None,
) -> int:
    """Do the jobs that are not done yet.

    One process a core, each with one thread: for small problems that is the fastest, and
    it makes sums come out in one order, so that the same seeds give the same numbers.

    Args:
        jobs: In the order in which they start: the longest should come first.
        work: A function of a module, for other processes to import.
        store: Where results go, one file a job, as soon as it is done.
        workers: Processes. Defaults to the number of cores; `0` works in this one.
        budget: Minutes after which no further job starts. Defaults to no end.

    Returns:
        How many jobs are left to do.

    Raises:
        RuntimeError: If jobs failed, after all others are done; it names the first.
    """
    from tqdm import tqdm

    todo = [job for job in jobs if not store.done(job)]
    end = None if budget is None else time.monotonic() + 60.0 * budget
    failures: list[tuple[Job, BaseException]] = []
    with tqdm(total=len(jobs), initial=len(jobs) - len(todo), unit="job") as bar:

        def finish(job: Job, result: concurrent.futures.Future[Any]) -> None:
            error = result.exception()
            if error is None:
                try:
                    store.write(job, *result.result())
                except (TypeError, ValueError) as wrong:  # rows that are no JSON
                    error = wrong
            if error is not None:
                failures.append((job, error))
            bar.update()

        with _pool(workers) as pool:
            # One more than there are processes, so that none waits for its next.
            most = 1 if workers == 0 else (workers or os.cpu_count() or 1) + 1
            _submit_in_turn(pool, todo, work, most, end, finish)
    if failures:
        job, error = failures[0]
        raise RuntimeError(
            f"{len(failures)} jobs failed; the results of all others are kept. The first: "
            f"{dict(job)}"
        ) from error
    return sum(not store.done(job) for job in jobs)


def _submit_in_turn(
    pool: concurrent.futures.Executor,
    todo: Sequence[Job],
    work: Work,
    most: int,
    end: float | None,
    finish: Callable[[Job, concurrent.futures.Future[Any]], None],
) -> None:
    """Keep the pool busy, with no more waiting than it needs, until the end."""
    waiting = iter(todo)
    running: dict[concurrent.futures.Future[Any], Job] = {}
    try:
        while True:
            while len(running) < most and (end is None or time.monotonic() < end):
                job = next(waiting, None)
                if job is None:
                    break
                running[pool.submit(_timed, work, dict(job))] = job
            if not running:
                return
            done, _ = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                finish(running.pop(future), future)
    except KeyboardInterrupt:
        for future in running:
            future.cancel()
        raise


def _timed(work: Work, job: Job) -> tuple[list[Row], float]:
    begun = time.process_time()
    rows = work(job)
    return rows, time.process_time() - begun


def _pool(workers: int | None) -> concurrent.futures.Executor:
    if workers == 0:
        return _Here()
    for name in THREADS:
        os.environ[name] = "1"  # inherited by the processes, which load the libraries
    return concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start
    )


def _start() -> None:
    """Give TensorFlow one thread, too, in a process that has not used it."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # each network of a new shape is a new trace

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    warnings.simplefilter("ignore")  # divergence is part of a result


def _leave_with_parent() -> None:
    """End with a parent that was killed: it tells nobody, and no more jobs come."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Here(concurrent.futures.Executor):
    """An executor that works at once, in this process."""

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:  # the caller looks at `future.exception()`
            future.set_exception(error)
        return future

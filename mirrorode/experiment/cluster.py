"""Tasks on a running Dask cluster; what they give travels back, so that no files are shared."""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mirrorode.experiment import store
from mirrorode.experiment.keys import place, version
from mirrorode.experiment.work import Task, work
from mirrorode.experiment.workers import Outcome, Tell, paced, packed, reason, unpacked
from mirrorode.problem.errors import InputError

if TYPE_CHECKING:
    from distributed import Client

PATIENCE = 10  # seconds in which a scheduler must answer
FILES = (store.RESULT, "run.json")  # in the order in which they are stored


def connect(address: str) -> Client:
    """A client of the scheduler at ``address``.

    Raises:
        InputError: if there is none, or Dask is not installed.
    """
    try:
        from distributed import Client
        from distributed.comm import connect as reach
    except ImportError:
        sentence = "`cluster` needs Dask, which is not installed: pip install 'mirrorode[cluster]'"
        raise InputError(sentence) from None

    async def tried() -> None:
        comm = await reach(address, timeout=PATIENCE)
        await comm.close()

    try:
        # First without a client, which leaves a trace of its own where it cannot connect.
        asyncio.run(tried())
        return Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        sentence = "`cluster` must be the address of a running Dask scheduler"
        raise InputError(f"{sentence}, but is {address!r} ({reason(error)})") from None


def remotely(data: bytes, expected: str, topic: str, number: int) -> dict[str, bytes]:
    """Do a task on a worker of the cluster, and give the files of its run folder.

    Raises:
        ValueError: if the worker has another version of the code.
    """
    from distributed import get_worker

    task = unpacked(data)
    if version(task.job) != expected:
        raise ValueError("the worker has another version of mirrorode")
    torch.set_num_threads(1)
    worker = get_worker()
    # Where another worker of the machine finds the checkpoint if this one dies.
    scratch = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mirrorode"
    show = paced(lambda share, state: worker.log_event(topic, (number, share, state)))
    while True:
        folder = work(task, scratch, show)
        try:
            found = {name: (folder / name).read_bytes() for name in FILES}
        except FileNotFoundError:  # another sweep wanted the same, and was quicker
            continue
        shutil.rmtree(folder, ignore_errors=True)
        return found


def on_cluster(tasks: Sequence[Task], out: Path, client: Client, tell: Tell) -> Generator[Outcome]:
    """Do ``tasks`` on the cluster of ``client`` and store them below ``out``; each as it ends.

    No more are handed out than the workers have threads, so that a worker that dies takes no
    other task with it than the one it does.
    """
    from distributed import as_completed

    topic = f"mirrorode-{uuid.uuid4()}"
    client.subscribe_topic(topic, lambda event: tell(*event[1]))
    waiting = iter(range(len(tasks)))
    numbers: dict[Any, int] = {}
    ended = as_completed([], loop=client.loop, raise_errors=False)

    def hand_out() -> None:
        threads = sum(client.nthreads().values())
        if not threads:
            tell(0, 0.0, "waiting for a worker")
        threads = max(1, threads)
        while len(numbers) < threads and (number := next(waiting, None)) is not None:
            task = tasks[number]
            future = client.submit(
                remotely, packed(task), version(task.job), topic, number, pure=False
            )
            numbers[future] = number
            ended.add(future)

    try:
        hand_out()
        for future in ended:
            number = numbers.pop(future)
            yield number, _stored(future, tasks[number], out)
            hand_out()
    except OSError:
        for number in (*numbers.values(), *waiting):
            yield number, "the scheduler is gone"
        numbers.clear()
    finally:
        with suppress(OSError):
            client.cancel(list(numbers))
            client.unsubscribe_topic(topic)


def _stored(future: Any, task: Task, out: Path) -> str:
    """Store what a future holds; why not, if so."""
    from distributed import KilledWorker

    if future.status != "finished":
        error = future.exception() if future.status == "error" else None
        if isinstance(error, KilledWorker):
            return f"{error.allowed_failures + 1} workers died of it"
        return reason(error) if error else "the scheduler has dropped it"
    folder = place(out, task.name, task.job)
    try:
        store.receive(folder, task.job, future.result())
    except OSError as error:  # of this machine: the others may still find space
        return reason(error)
    return ""

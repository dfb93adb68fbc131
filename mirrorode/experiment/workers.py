"""Tasks in worker processes of this machine, one thread each, whose deaths cost only time.

A worker is told what to do, and tells what it does, through a pipe of its own: one that is killed
breaks nothing but that pipe. Its task is given to another, and goes on from its checkpoint.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from mirrorode.experiment import scenario
from mirrorode.experiment.work import Task, work

DEATHS = 3  # of workers, after which their task is given up
PACE = 0.5  # seconds between two lines about a task

Tell = Callable[[int, float, str], None]
"""Called with the number of a task, the share of it that is done, and a line about where it is."""
Outcome = tuple[int, str]
"""The number of a task that has ended, and why it failed, if so."""


def packed(task: Task) -> bytes:
    """A task as it travels; the classes of its scenario's file come with the file's name."""
    return pickle.dumps((task.name, pickle.dumps(task)))


def unpacked(data: bytes) -> Task:
    """The task in what `packed` gave to a process of ours."""
    name, inner = pickle.loads(data)
    scenario.load(name)
    task: Task = pickle.loads(inner)
    return task


def paced(show: Callable[[float, str], None]) -> Callable[[float, str], None]:
    """``show``, but not more often than every half second."""
    last = 0.0

    def shown(share: float, state: str) -> None:
        nonlocal last
        if time.monotonic() > last + PACE:
            last = time.monotonic()
            show(share, state)

    return shown


def reason(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


@dataclass
class Worker:
    """A process, our end of its pipe, and the number of the task it has, if any."""

    process: SpawnProcess
    pipe: Connection
    task: int | None = None

    @classmethod
    def start(cls, out: Path) -> Worker:
        """A new one, which stores below ``out``."""
        # Not forked: the threads of torch do not survive that.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, out), daemon=True)
        process.start()
        theirs.close()
        return cls(process, ours)

    def stop(self) -> None:
        """End the process at once; what it has stored is kept."""
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def death(self) -> str:
        """How the process ended."""
        self.process.join()
        code = self.process.exitcode or 0
        if code >= 0:
            return f"with exit code {code}"
        names = {it.value: it.name for it in signal.Signals}
        return f"by {names.get(-code, f'signal {-code}')}"


def _serve(pipe: Connection, out: Path) -> None:
    """Do task after task until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is for the one that started us
    torch.set_num_threads(1)
    # Once nobody listens a task has no reader: the process ends, and its checkpoint stays.
    with suppress(EOFError, BrokenPipeError):
        while True:
            data = pipe.recv_bytes()
            try:
                work(unpacked(data), out, paced(lambda share, state: pipe.send((share, state))))
            except BrokenPipeError:
                raise
            except Exception as error:
                pipe.send(reason(error))
            else:
                pipe.send("")


def locally(tasks: Sequence[Task], out: Path, count: int, tell: Tell) -> Generator[Outcome]:
    """Do ``tasks`` in ``count`` worker processes that store below ``out``; each as it ends."""
    waiting, deaths = deque(range(len(tasks))), Counter[int]()
    workers = [Worker.start(out) for _ in range(min(count, len(tasks)))]
    try:
        while waiting or any(it.task is not None for it in workers):
            for worker in workers:
                if worker.task is None and waiting:
                    try:
                        worker.pipe.send_bytes(packed(tasks[waiting[0]]))
                    except OSError:  # it died while it was idle
                        worker.stop()
                        workers[workers.index(worker)] = Worker.start(out)
                    else:
                        worker.task = waiting.popleft()
            for pipe in wait([it.pipe for it in workers if it.task is not None]):
                worker = next(it for it in workers if it.pipe is pipe)
                number = worker.task
                assert number is not None
                try:
                    said = worker.pipe.recv()
                except (EOFError, OSError):
                    death = worker.death()
                    worker.pipe.close()
                    workers[workers.index(worker)] = Worker.start(out)
                    deaths[number] += 1
                    if deaths[number] == DEATHS:
                        yield number, f"{DEATHS} workers died of it, the last {death}"
                    else:
                        tell(number, 0.0, f"its worker died {death}: tried again")
                        waiting.append(number)
                    continue
                if isinstance(said, str):
                    worker.task = None
                    yield number, said
                else:
                    tell(number, *said)
    finally:
        for worker in workers:
            worker.stop()

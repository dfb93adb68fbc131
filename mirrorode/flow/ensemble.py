"""Many integrations side by side: what they ask for is done for all that wait at once.

An integration is a generator. It yields the neurons that it needs followed, and goes on with where
they went; each keeps its own step, clock, events and status, and one that is over drops out.
"""

from __future__ import annotations

import io
import multiprocessing as mp
import pickle
import sys
from collections import defaultdict
from collections.abc import Hashable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch

from mirrorode.flow.subflow import Convoy
from mirrorode.flow.underway import Path, Request
from mirrorode.flow.waveform import Asking

T = TypeVar("T")


def together(integrations: Sequence[Asking[T]]) -> list[T]:
    """The results of all, in this process."""
    results: dict[int, T] = {}
    convoys: defaultdict[Hashable, Convoy[int]] = defaultdict(Convoy)  # of networks of one shape
    answers: dict[int, Path | None] = dict.fromkeys(range(len(integrations)))
    while answers:
        asked: defaultdict[Hashable, dict[int, Request]] = defaultdict(dict)
        for number, answer in answers.items():
            try:
                request = integrations[number].send(answer)
            except StopIteration as end:
                results[number] = end.value
            else:
                asked[request.start.dual.shape, request.drive.moving][number] = request
        for shape, requests in asked.items():
            convoys[shape].join(requests)
        answers = {}
        for convoy in convoys.values():
            answers |= convoy.arrive()
    return [results[number] for number in range(len(integrations))]


def spread(integrations: Sequence[Asking[T]], shared: Sequence[object]) -> list[T]:
    """The results of all, by as many processes as torch may use threads.

    Python's lock leaves threads little to do at once here. The processes are forks of this one, so
    that what they integrate need not travel; ``shared`` objects do not travel back either, and come
    out as they are here. Where forks are not safe, all is done in this process.
    """
    workers = min(len(integrations), torch.get_num_threads())
    forks = sys.platform == "linux" and not mp.current_process().daemon
    if workers < 2 or not forks or torch.cuda.is_initialized():
        return together(integrations)
    shares = [integrations[first::workers] for first in range(workers)]
    helpers = [_helper(share, shared) for share in shares[1:]]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        found = [together(shares[0])]
        for (_, receiver), share in zip(helpers, shares[1:], strict=True):
            found.append(_received(receiver, share, shared))
    finally:
        torch.set_num_threads(threads)
        for process, _ in helpers:
            process.kill()
            process.join()
    results: list[Any] = [None] * len(integrations)
    for first, part in enumerate(found):
        results[first::workers] = part
    return results


def _helper(share: Sequence[Asking[T]], shared: Sequence[object]) -> tuple[BaseProcess, Connection]:
    context = mp.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(share, sender, shared), daemon=True)
    process.start()
    sender.close()
    return process, receiver


def _work(share: Sequence[Asking[T]], sender: Connection, shared: Sequence[object]) -> None:
    torch.set_num_threads(1)  # the pool of threads did not come along
    with sender, suppress(BaseException):  # which the parent meets in its turn
        sender.send_bytes(_packed(together(share), shared))


def _received(
    receiver: Connection, share: Sequence[Asking[T]], shared: Sequence[object]
) -> list[T]:
    """What a helper found; a share that it lost, killed or failed, is integrated here."""
    try:
        data = receiver.recv_bytes()
    except EOFError:
        return together(share)
    return _unpacked(data, shared)


def _packed(value: object, shared: Sequence[object]) -> bytes:
    places = {id(one): place for place, one in enumerate(shared)}

    class Pickler(pickle.Pickler):
        def persistent_id(self, one: object) -> int | None:
            return places.get(id(one))

    buffer = io.BytesIO()
    Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


def _unpacked(data: bytes, shared: Sequence[object]) -> Any:
    class Unpickler(pickle.Unpickler):
        def persistent_load(self, place: int) -> object:
            return shared[place]

    return Unpickler(io.BytesIO(data)).load()

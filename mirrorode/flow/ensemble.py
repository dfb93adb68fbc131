"""Many integrations side by side: what they ask for is done for all that wait at once.

An integration is a generator. It yields the neurons that it needs followed, and goes on with where
they went; each keeps its own step, clock, events and status, and one that is over drops out.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

from mirrorode.flow.subflow import Path, Request, follow
from mirrorode.flow.waveform import Asking

T = TypeVar("T")


def together(integrations: Sequence[Asking[T]]) -> list[T]:
    """The results of all."""
    results: dict[int, T] = {}
    answers: dict[int, Path | None] = dict.fromkeys(range(len(integrations)))
    while answers:
        asked: dict[int, Request] = {}
        for number, answer in answers.items():
            try:
                asked[number] = integrations[number].send(answer)
            except StopIteration as end:
                results[number] = end.value
        answers = _answered(asked)
    return [results[number] for number in range(len(integrations))]


def _answered(asked: dict[int, Request]) -> dict[int, Path | None]:
    alike: dict[Hashable, list[int]] = {}
    for number, request in asked.items():
        kind = (request.start.dual.shape, request.drive.moving)
        alike.setdefault(kind, []).append(number)
    answers: dict[int, Path | None] = {}
    for numbers in alike.values():
        answers |= zip(numbers, follow([asked[number] for number in numbers]), strict=True)
    return answers

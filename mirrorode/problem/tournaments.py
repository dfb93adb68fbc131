"""Maxima as tournaments of pairs, so that every kink has two sides.

The maximum of m values is found in ⌈log₂ m⌉ rounds; in each, max(a, b) = b + (a − b)₊ is one gate
on a − b. Windows of unequal size (padding, adaptive pooling) get byes: no value ever plays itself,
which would be a kink that is always touched.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

Windows = tuple[tuple[int, ...], ...]
"""For each place of the output along one axis, the places of the input it looks at."""


@dataclass(frozen=True)
class _Bracket:
    """Places in the list of contenders: (first, second, bye) a round, then the winners' order."""

    rounds: tuple[tuple[Tensor, ...], ...]
    winners: Tensor


def play(
    choose: Callable[[Tensor, Tensor], Tensor], u: Tensor, windows: Sequence[Windows]
) -> Tensor:
    """Maxima of ``u`` (…, *sizes) over windows along its last axes, by ``choose`` = max of two."""
    sizes = tuple(u.shape[-len(windows) :])
    bracket = _bracket(sizes, tuple(windows))
    values = u.flatten(-len(windows))
    for first, second, bye in bracket.rounds:
        first, second, bye = (place.to(values.device) for place in (first, second, bye))
        won = choose(values.index_select(-1, first), values.index_select(-1, second))
        values = torch.cat([won, values.index_select(-1, bye)], -1) if len(bye) else won
    values = values.index_select(-1, bracket.winners.to(values.device))
    return values.unflatten(-1, [len(axis) for axis in windows])


@lru_cache(maxsize=256)
def _bracket(sizes: tuple[int, ...], windows: tuple[Windows, ...]) -> _Bracket:
    groups = []
    for axes in itertools.product(*windows):
        group = [0]
        for size, axis in zip(sizes, axes, strict=True):
            group = [size * place + step for place in group for step in axis]
        groups.append(group)
    rounds = []
    while any(len(group) > 1 for group in groups):
        # Windows overlap: two that meet in several are one unit.
        pairs: dict[tuple[int, int], int] = {}
        byes: dict[int, int] = {}
        draws = [list(zip(group[::2], group[1::2], strict=False)) for group in groups]
        for group, draw in zip(groups, draws, strict=True):
            for pair in draw:
                pairs.setdefault(pair, len(pairs))
            if len(group) % 2:
                byes.setdefault(group[-1], len(byes))
        groups = [
            [pairs[pair] for pair in draw]
            + [len(pairs) + byes[bye] for bye in group[2 * len(draw) :]]
            for group, draw in zip(groups, draws, strict=True)
        ]
        places = ([a for a, _ in pairs], [b for _, b in pairs], list(byes))
        rounds.append(tuple(torch.tensor(place, dtype=torch.long) for place in places))
    return _Bracket(tuple(rounds), torch.tensor([group[0] for group in groups]))


def sliding(
    size: int, kernel: int, stride: int, padding: int, dilation: int, *, ceil_mode: bool
) -> Windows:
    """The windows of max pooling along one axis; what is padded takes no part."""
    span = dilation * (kernel - 1) + 1
    count = (size + 2 * padding - span + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (count - 1) * stride >= size + padding:
        count -= 1
    starts = [stride * place - padding for place in range(count)]
    return tuple(
        tuple(step for step in range(start, start + span, dilation) if 0 <= step < size)
        for start in starts
    )


def adaptive(size: int, count: int) -> Windows:
    """The windows of adaptive pooling from ``size`` places to ``count`` along one axis."""
    return tuple(
        tuple(range(place * size // count, -(-(place + 1) * size // count)))
        for place in range(count)
    )

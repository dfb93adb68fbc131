"""Kinks of the network along a step: which unit switches on which sample, when, and how.

A pair (sample i, unit j) has its kink where its pre-activation is zero. Two things can happen
when a trajectory arrives there, decided by the normal velocities r_off and r_on that the flow
has on the two sides: of one sign, the pair *crosses*; r_off > 0 > r_on, it *slides* along
the kink under the least-norm selection. For the exponential loss and a rising activation only
pairs with y_i × signal < 0 can slide; the others always cross on arrival.

A crossing does not end a step. The integral of the velocity over the step is taken exactly across
it: before the crossing time τ the sample contributes its gradient under one pattern, after τ under
the other, each pattern's smooth extension being known at all nodes. `Rows` holds this division
of the step into windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mirrorode.flow import radau
from mirrorode.problem.homogeneous import Pattern


@dataclass(frozen=True)
class Pairs:
    """F pairs of a sample and a hidden unit: equal-length index tensors (F,)."""

    layer: Tensor
    unit: Tensor
    sample: Tensor

    @classmethod
    def none(cls, device: torch.device) -> Pairs:
        """No pair at all."""
        return cls.of([], device)

    @classmethod
    def of(cls, pairs: list[tuple[int, int, int]], device: torch.device) -> Pairs:
        """From (layer, unit, sample) triples."""
        return cls(*torch.tensor(pairs, dtype=torch.long, device=device).reshape(-1, 3).T)

    @property
    def fields(self) -> tuple[Tensor, Tensor, Tensor]:
        """Layer, unit, sample."""
        return self.layer, self.unit, self.sample

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, which: Tensor | slice) -> Pairs:
        return Pairs(*(field[which] for field in self.fields))

    def __add__(self, other: Pairs) -> Pairs:
        return Pairs(*(torch.cat(pair) for pair in zip(self.fields, other.fields, strict=True)))

    def lists(self) -> tuple[list[int], list[int], list[int]]:
        """The fields on the host."""
        return self.layer.tolist(), self.unit.tolist(), self.sample.tolist()

    def gather(self, values: list[Tensor]) -> Tensor:
        """Entries of one (…, K, units) tensor a layer at the pairs: (…, F)."""
        if not values:  # a network without hidden layers has no pairs
            return torch.zeros(0, device=self.unit.device)
        found = values[0].new_zeros((*values[0].shape[:-2], len(self)))
        for layer, value in enumerate(values):
            here = self.layer == layer
            found[..., here] = value[..., self.sample[here], self.unit[here]]
        return found

    def mark(self, like: Pattern, value: bool) -> Pattern:
        """A copy of the pattern ``like`` with the pairs set to ``value``."""
        marked = [on.clone() for on in like]
        for layer, on in enumerate(marked):
            here = self.layer == layer
            on[self.sample[here], self.unit[here]] = value
        return marked


@dataclass(frozen=True)
class Rows:
    """Every sample under every pattern it takes in the step, each with its window of the step.

    Attributes:
        sample: (R,) index of the sample; the first K rows are the samples on the start pattern.
        pattern: one (R, units) a hidden layer.
        quadrature: (3, 3, R), ∫ of the k-th slope basis over the window cut at node j.
        at_node: (3, K), the row that is valid for each sample at each node.
    """

    sample: Tensor
    pattern: Pattern
    quadrature: Tensor
    at_node: Tensor

    def same_patterns(self, other: Rows) -> bool:
        """Whether the network has the same value on both, times apart."""
        if len(self.sample) != len(other.sample):
            return False
        pairs = zip([self.sample, *self.pattern], [other.sample, *other.pattern], strict=True)
        return all(torch.equal(a, b) for a, b in pairs)


def divide(count: int, pattern: Pattern, flips: Pairs, time: Tensor) -> Rows:
    """Divide a step of ``count`` samples, that starts on ``pattern``, at the flips and their times.

    ``time`` (F,) is in [0, 1].
    """
    device = time.device
    order = torch.argsort(time)
    order = order[torch.argsort(flips.sample[order], stable=True)]
    flips, time = flips[order], time[order]
    index = torch.arange(len(flips), device=device)
    same = flips.sample[:, None] == flips.sample[None, :]
    done = same & (index[None, :] <= index[:, None])
    later = same & (index[None, :] > index[:, None])
    patterns = []
    for layer, on in enumerate(pattern):
        unit = torch.nn.functional.one_hot(flips.unit * (flips.layer == layer), on.shape[1])
        switched = (done & (flips.layer == layer)).to(time) @ unit.to(time)
        patterns.append(torch.cat([on, on[flips.sample] ^ (switched % 2 == 1)]))
    sample = torch.cat([torch.arange(count, device=device), flips.sample])
    first = torch.ones(count, dtype=time.dtype, device=device)
    first = first.scatter_reduce(0, flips.sample, time, "amin")
    ones = torch.ones_like(time)
    following = torch.where(later, time[None, :], ones[None, :])
    following = following.amin(1) if len(flips) else ones
    start = torch.cat([torch.zeros_like(first), time])
    end = torch.cat([first, following])
    nodes = torch.as_tensor(radau.NODES, dtype=time.dtype, device=device)[:, None]
    upper = radau.evaluate(radau.SLOPE_INTEGRAL, torch.minimum(end, nodes))
    lower = radau.evaluate(radau.SLOPE_INTEGRAL, torch.minimum(start, nodes))
    entered = torch.where(time <= nodes, count + index, 0)
    at_node = torch.arange(count, device=device).expand(radau.STAGES, count)
    target = flips.sample.expand(radau.STAGES, len(flips))
    at_node = at_node.scatter_reduce(1, target, entered, "amax")
    return Rows(sample, patterns, (upper - lower).movedim(-1, 1), at_node)


def crossings(pattern: Pattern, values: list[Tensor], ignore: Pattern) -> tuple[Pairs, Tensor]:
    """Sign changes of the pre-activations along a step, with their times in [0, 1].

    Args:
        pattern: the start pattern, one (K, units) a layer; it decides the sign at the start.
        values: pre-activations at the start and the three stages, one (4, K, units) a layer.
        ignore: pairs to leave out (sliding, or of a captured unit).

    Returns:
        The pairs, once for each crossing, and the roots of the cubic through the four values.
    """
    ends = values[0].new_tensor([0.0, *radau.NODES])
    found, times = Pairs.none(ends.device), ends.new_zeros(0)
    for layer, (on, value, skip) in enumerate(zip(pattern, values, ignore, strict=True)):
        side = torch.cat([on[None], value[1:] > 0])
        change = (side[1:] != side[:-1]) & ~skip
        piece, sample, unit = torch.nonzero(change, as_tuple=True)
        if len(piece) == 0:
            continue
        cubic = value[:, sample, unit].T @ value.new_tensor(radau.STATE_BASIS)
        rising = side[1:][piece, sample, unit]
        times = torch.cat([times, roots(cubic, ends[piece], ends[piece + 1], rising)])
        found = found + Pairs(torch.full_like(sample, layer), unit, sample)
    return found, times


def roots(cubic: Tensor, low: Tensor, high: Tensor, rising: Tensor) -> Tensor:
    """The sign change of each cubic (F, 4) in [low, high], by bisection to 2⁻⁴⁰ of a step."""
    constant, linear, quadratic, leading = cubic.unbind(1)
    for _ in range(40):
        middle = 0.5 * (low + high)
        value = torch.addcmul(quadratic, middle, leading)
        value = torch.addcmul(constant, middle, torch.addcmul(linear, middle, value))
        beyond = (value > 0) == rising
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return high

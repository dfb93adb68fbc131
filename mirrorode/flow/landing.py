"""Landing on the stopping rules: how far a step may go, and where in it a rule is met."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from scipy.optimize import brentq

from mirrorode.flow.dense import DenseStep
from mirrorode.flow.stopping import StoppingRule


def distance(loss: float, rules: Sequence[StoppingRule]) -> float:
    """How far the clock log ℓ may run from ℓ = ``loss``: up to the nearest prescribed loss."""
    targets = [rule.target for rule in rules if not rule.by_time]
    ahead = [math.log(target / loss) for target in targets if target > loss]
    return min(ahead, default=math.inf)


def share_to(dense: DenseStep, rules: Sequence[StoppingRule]) -> float:
    """The share of the step at which the first rule is met; 1 where none is, or at the very end."""
    log_time, loss = dense.log_time_at(1.0), float(dense.log_inverse_loss(1.0))
    passed = [rule for rule in rules if rule.met(log_time, loss) and not rule.at(log_time, loss)]
    shares = (dense.locate(rule.target, by_time=rule.by_time) for rule in passed)
    return min(shares, default=1.0)


class Kept(Protocol):
    """A step kept up to ``share`` of what was integrated."""

    @property
    def share(self) -> float:
        """The share of the step that is kept."""

    @property
    def dense(self) -> DenseStep:
        """Dense output up to there."""

    @property
    def loss(self) -> float:
        """log(1/𝓛) there."""


K = TypeVar("K", bound=Kept)


def land(whole: K, cut: Callable[[float, K], K], rules: Sequence[StoppingRule]) -> K:
    """The step cut at the first rule that it passes; ``cut(share, whole)`` is it up to a share."""
    for rule in rules:
        log_time = whole.dense.log_time_at(1.0)
        if rule.met(log_time, whole.loss) and not rule.at(log_time, whole.loss):
            whole = _land_on(whole, cut, rule)
    return whole


def _land_on(whole: K, cut: Callable[[float, K], K], rule: StoppingRule) -> K:
    """The step cut at ``rule``, which ``whole`` passes."""
    tried = [whole]

    def gap(share: float) -> float:
        tried.append(cut(share, whole))
        log_time, loss = tried[-1].dense.log_time_at(1.0), tried[-1].loss
        value = log_time if rule.by_time else loss
        return 0.0 if rule.at(log_time, loss) else value - rule.target

    share = whole.share * min(whole.dense.locate(rule.target, by_time=rule.by_time), 1 - 1e-15)
    if gap(share) != 0:
        brentq(gap, 1e-3 * share, whole.share, xtol=1e-300, rtol=1e-14, maxiter=60)
    return tried[-1]

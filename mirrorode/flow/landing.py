"""Landing on the stopping rules: how far a step may go, and where in it a rule is met."""

from __future__ import annotations

import math
from collections.abc import Sequence

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

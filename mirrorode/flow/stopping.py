"""Stopping rules: where a trajectory ends, always in true time or true loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from mirrorode.problem.errors import require_number

LANDED = 1e-10  # relative


class StoppingRule(ABC):
    """A value that log t, or log(1/𝓛), is to take.

    Attributes:
        by_time: whether the value is one of log t.
    """

    by_time: ClassVar[bool]

    @property
    @abstractmethod
    def target(self) -> float:
        """The value."""

    def met(self, log_time: float, log_inverse_loss: float) -> bool:
        """Whether the target is reached or passed."""
        return self._beyond(log_time, log_inverse_loss) >= -1.0

    def at(self, log_time: float, log_inverse_loss: float) -> bool:
        """Whether the target is reached exactly."""
        return abs(self._beyond(log_time, log_inverse_loss)) <= 1.0

    def _beyond(self, log_time: float, log_inverse_loss: float) -> float:
        """How far beyond the target, in units of what counts as landed."""
        value = log_time if self.by_time else log_inverse_loss
        return (value - self.target) / (LANDED * max(1.0, abs(self.target)))


@dataclass(frozen=True)
class Time(StoppingRule):
    """Stop at time t > 0, whatever clock the integrator runs in."""

    t: float
    by_time: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_number(self.t, "t", "be positive", 0.0, strict=True)

    @property
    def target(self) -> float:
        """log t."""
        return math.log(self.t)


@dataclass(frozen=True)
class LogTime(StoppingRule):
    """Stop at log t = s; s may be 1e9."""

    s: float
    by_time: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_number(self.s, "s", "be a finite number", -math.inf, strict=True)

    @property
    def target(self) -> float:
        """log t."""
        return self.s


@dataclass(frozen=True)
class LogInverseLoss(StoppingRule):
    """Stop at log(1/𝓛) = v; 𝓛 = 1e-50 is v = 115.13."""

    v: float
    by_time: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_number(self.v, "v", "be a finite number", -math.inf, strict=True)

    @property
    def target(self) -> float:
        """log(1/𝓛)."""
        return self.v

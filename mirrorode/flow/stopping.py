"""Stopping rules: where a trajectory ends, always in true time or true loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from mirrorode.problem.errors import require_number

LANDED = 1e-10  # relative


class StoppingRule(ABC):
    """A value that log t or log(1/𝓛) is to take."""

    @property
    @abstractmethod
    def target(self) -> float:
        """The value, as log t or log(1/𝓛)."""

    @abstractmethod
    def measure(self, log_time: float, log_inverse_loss: float) -> float:
        """What is compared with `target`."""

    @property
    def _slack(self) -> float:
        return LANDED * max(1.0, abs(self.target))

    def met(self, log_time: float, log_inverse_loss: float) -> bool:
        """Whether the target is reached or passed."""
        return self.measure(log_time, log_inverse_loss) >= self.target - self._slack

    def at(self, log_time: float, log_inverse_loss: float) -> bool:
        """Whether the target is reached exactly."""
        return abs(self.measure(log_time, log_inverse_loss) - self.target) <= self._slack


@dataclass(frozen=True)
class Time(StoppingRule):
    """Stop at time t > 0, whatever clock the integrator runs in."""

    t: float

    def __post_init__(self) -> None:
        require_number(self.t, "t", "be positive", 0.0, strict=True)

    @property
    def target(self) -> float:
        """The same instant as log t."""
        return math.log(self.t)

    def measure(self, log_time: float, log_inverse_loss: float) -> float:
        """What is compared with `target`."""
        del log_inverse_loss
        return log_time


@dataclass(frozen=True)
class LogTime(StoppingRule):
    """Stop at log t = s; s may be 1e9."""

    s: float

    def __post_init__(self) -> None:
        require_number(self.s, "s", "be a finite number", -math.inf, strict=True)

    @property
    def target(self) -> float:
        """log t."""
        return self.s

    def measure(self, log_time: float, log_inverse_loss: float) -> float:
        """What is compared with `target`."""
        del log_inverse_loss
        return log_time


@dataclass(frozen=True)
class LogInverseLoss(StoppingRule):
    """Stop at log(1/𝓛) = v; 𝓛 = 1e-50 is v = 115.13."""

    v: float

    def __post_init__(self) -> None:
        require_number(self.v, "v", "be a finite number", -math.inf, strict=True)

    @property
    def target(self) -> float:
        """log(1/𝓛)."""
        return self.v

    def measure(self, log_time: float, log_inverse_loss: float) -> float:
        """What is compared with `target`."""
        del log_time
        return log_inverse_loss

"""Functions of the state that are kept while a flow is integrated, where whole states are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from torch import Tensor

from mirrorode.flow.stopping import StoppingRule
from mirrorode.problem.errors import require

Function = Callable[[float, Tensor], Any]


@dataclass(frozen=True)
class Observable:
    """A function of (log t, θ) for ``saveat`` of `solve`; a function by itself is one of all steps.

    Args:
        function: of log t (−inf at the start) and θ (n,), as integrated, before the balance
            equation is restored; returns a number or a tensor, of the same shape every time.
        at: stopping rules, met exactly; start and every accepted step if None.
        name: under which `Trajectory.observed` has it; that of the function by default.

    Raises:
        InputError: if ``function`` cannot be called, or ``at`` holds something else.
    """

    function: Function
    at: Sequence[StoppingRule] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        require(callable(self.function), "function", "be callable", repr(self.function))
        rules = () if self.at is None else self.at
        fine = isinstance(rules, Sequence) and all(isinstance(it, StoppingRule) for it in rules)
        require(fine, "at", "hold stopping rules", self.at)
        named = self.name or getattr(self.function, "__name__", type(self.function).__name__)
        object.__setattr__(self, "name", named)


@dataclass(frozen=True, eq=False)
class Observed:
    """What an observable was: S values.

    Attributes:
        log_time, log_inverse_loss: log t and log(1/𝓛), (S,).
        values: (S, …).
    """

    log_time: Tensor
    log_inverse_loss: Tensor
    values: Tensor

    def __len__(self) -> int:
        return len(self.log_time)


@dataclass
class Observer:
    """One observable along a run; ``pending`` are the rules still to be met, None for all steps."""

    observable: Observable
    pending: list[StoppingRule] | None
    seen: list[tuple[float, float, Tensor]] = field(default_factory=list)
    failed: str = ""

    def see(self, log_time: float, loss: float, theta: Callable[[], Tensor]) -> None:
        """Look at a state, if it is due. What a user's function raises must not end the run."""
        due = True
        if self.pending is not None:
            kept = [rule for rule in self.pending if not rule.met(log_time, loss)]
            due, self.pending = len(kept) < len(self.pending), kept
        if not due or self.failed:
            return
        try:
            found, state = self.observable.function(log_time, theta()), theta()
            known = isinstance(found, Tensor)
            value = found.detach().clone() if known else state.new_tensor(found)
            if self.seen and value.shape != self.seen[0][2].shape:
                raise ValueError(
                    f"shape {tuple(value.shape)}, {tuple(self.seen[0][2].shape)} before"
                )
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            self.failed = f"`{self.observable.name}` failed at log t = {log_time:.6g} ({reason})"
            return
        self.seen.append((log_time, loss, value))

    def observed(self, like: Tensor) -> Observed:
        """All that was seen."""
        if not self.seen:
            return Observed(like.new_zeros(0), like.new_zeros(0), like.new_zeros(0))
        log_time, loss, values = zip(*self.seen, strict=True)
        return Observed(like.new_tensor(log_time), like.new_tensor(loss), torch.stack(values))


def split(saveat: Any) -> tuple[list[StoppingRule] | None, list[Observable]]:
    """The rules at which states are saved, None for every step, and the observables.

    Raises:
        InputError: if there is anything else, or two observables have one name.
    """
    if saveat is None:
        return None, []
    fine = isinstance(saveat, Sequence) and not isinstance(saveat, str)
    require(fine, "saveat", "be a list of rules and functions", repr(saveat))
    rules: list[StoppingRule] = []
    found: list[Observable] = []
    for one in saveat:
        if isinstance(one, StoppingRule):
            rules.append(one)
            continue
        fine = callable(one) or isinstance(one, Observable)
        require(fine, "saveat", "hold stopping rules, functions and Observables", repr(one))
        found.append(one if isinstance(one, Observable) else Observable(one))
    names = [one.name for one in found]
    twice = next((name for name in names if names.count(name) > 1), "")
    require(not twice, "saveat", "hold observables of different names", f"{twice} twice")
    return rules, found


def observers(observables: Iterable[Observable], loss: float) -> list[Observer]:
    """One for each, with nothing seen; rules that the start at ``loss`` has met are no rules."""
    return [
        Observer(one, None if one.at is None else [it for it in one.at if not it.met(-inf, loss)])
        for one in observables
    ]

"""The kinks of a module, set by a given activation pattern.

PyTorch lets one watch every function that is called on tensors. A `Plan`, which `tracing` writes
down once, says which of the calls have a kink that depends on the parameters, and in which order;
`Gates` in force during an evaluation put the linear branches of a pattern in their place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mirrorode.problem.errors import InputError
from mirrorode.problem.rewrites import Slopes, rewrite_of


@dataclass(frozen=True)
class Layer:
    """One kink layer.

    Attributes:
        units: how many.
        slopes: (off, on).
        sources: the parameters of which each unit has one row to itself, as its pre-activation is
            w·z, or w·z + b; none where units share weights or have none.
    """

    units: int
    slopes: Slopes
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Call:
    """What to do at one call of a function with a kink.

    Attributes:
        kind: "constant", leave it alone, for it does not depend on the parameters; "skip", hand
            on the argument; "gate", rewrite it.
        then: slopes of a gate that follows on the result.
    """

    kind: str
    then: Slopes | None = None


@dataclass(frozen=True)
class Plan:
    """The kinks of a module.

    Attributes:
        calls: of functions with kinks, in order.
        layers: the kink layers, in order.
        feeds: for calls of ``linear``, by number, the kink layer whose own weights they apply.
        others: names of functions of the parameters that are not known to be polynomial.
    """

    calls: tuple[Call, ...]
    layers: tuple[Layer, ...]
    feeds: dict[int, int]
    others: tuple[str, ...]


_CHANGING = "`module` must call the same functions at every evaluation, but it has changed"


class Reached(Exception):
    """The pre-activations of the last layer that was asked for are known."""


class Gates(TorchFunctionMode):
    """Evaluates a module of one sample on a pattern; to be entered once, around the evaluation.

    Args:
        plan: of the module.
        pattern: one (units,) a layer, at least up to ``stop``; the true one if None.
        nudges: one (units,) a layer, added to the post-activations.
        stop: the layer at whose pre-activations `Reached` is raised.

    Attributes:
        preactivations: one (units,) a layer.
        entering: by layer, what own weights are multiplied with, (fan-in,), 1 for a bias.
    """

    def __init__(
        self,
        plan: Plan,
        pattern: list[Tensor] | None = None,
        nudges: list[Tensor] | None = None,
        stop: int | None = None,
    ) -> None:
        super().__init__()
        self.plan, self.pattern, self.nudges, self.stop = plan, pattern, nudges, stop
        self.preactivations: list[Tensor] = []
        self.entering: dict[int, Tensor] = {}
        self._calls = iter(plan.calls)
        self._linear = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.linear:
            self._enter(first(args, kwargs))
        rewrite = rewrite_of(func)
        if rewrite is None:
            return func(*args, **kwargs)
        call = next(self._calls, None)
        if call is None:
            raise InputError(_CHANGING)
        if call.kind == "constant":
            return func(*args, **kwargs)
        if call.kind == "skip":
            return first(args, kwargs)
        value = rewrite(self, *args, **kwargs)
        return value if call.then is None else self.unit(value, call.then)

    def unit(self, u: Tensor, slopes: Slopes) -> Tensor:
        """The slope of the side that the pattern says, times u."""
        off, on = slopes
        return self._nudged(u * (off + (on - off) * self._is_on(u).to(u.dtype)))

    def choose(self, a: Tensor, b: Tensor) -> Tensor:
        """a where the pattern is on, else b."""
        return self._nudged(torch.where(self._is_on(a - b), a, b))

    def finish(self) -> None:
        """Check at the end of the evaluation that all kinks were met.

        Raises:
            InputError: if not.
        """
        if len(self.preactivations) != len(self.plan.layers):
            raise InputError(_CHANGING)

    def _enter(self, z: Tensor) -> None:
        layer = self.plan.feeds.get(self._linear)
        self._linear += 1
        if layer is not None:
            with_bias = len(self.plan.layers[layer].sources) == 2
            parts = [z.reshape(-1), z.new_ones(1)] if with_bias else [z.reshape(-1)]
            self.entering[layer] = torch.cat(parts)

    def _is_on(self, u: Tensor) -> Tensor:
        layer = len(self.preactivations)
        self.preactivations.append(u.reshape(-1))
        if layer == self.stop:
            raise Reached
        return u > 0 if self.pattern is None else self.pattern[layer].reshape(u.shape)

    def _nudged(self, value: Tensor) -> Tensor:
        if self.nudges is None:
            return value
        return value + self.nudges[len(self.preactivations) - 1].reshape(value.shape)


def first(args: Any, kwargs: dict[str, Any]) -> Tensor:
    """The first argument of a torch function, by place or by name."""
    return args[0] if args else kwargs["input"]

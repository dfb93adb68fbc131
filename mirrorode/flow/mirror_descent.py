"""Mirror descent: the discrete counterpart of the flow, as an optimizer of torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

from mirrorode.flow.description import describe, rebuild
from mirrorode.problem.consistency import require_mirror
from mirrorode.problem.errors import InputError, require, require_number
from mirrorode.problem.geometries import for_width
from mirrorode.problem.potentials import SeparablePotential

PIECE = 1 << 17  # weights that are updated together on a CPU: what is made of them fits a cache


class MirrorDescent(torch.optim.Optimizer):
    """z ← z − η∇𝓛 with θ = ∇R*(z), or its linearization in θ.

    As η → 0 both tend to the mirror flow, at first order. With the `Euclidean` potential both are
    `torch.optim.SGD`, bit for bit.

    Args:
        params: parameters, or groups of them as for any optimizer, each with a "potential", "lr" or
            "dual" of its own if it is to differ.
        potential: R, for every entry of a parameter.
        lr: η > 0.
        dual: whether to step in the dual variable, which is mirror descent proper; else
            θ ← θ − η ∇²R⁻¹(θ)∇𝓛, as the paper trains its vision networks (Appendix J.3), which
            needs no inverse map and no memory. In the dual, weights that are changed from
            outside, pruned say, are what the dual says again after the next step.

    Raises:
        InputError: if ``lr`` is not positive; a potential is not separable, not the same for every
            weight, or no mirror potential; or a parameter is neither float32 nor float64.
    """

    def __init__(
        self,
        params: Any,
        potential: SeparablePotential,
        lr: float,
        *,
        dual: bool = True,
    ) -> None:
        super().__init__(params, {"potential": potential, "lr": lr, "dual": dual})

    @classmethod
    def for_width(
        cls,
        module: nn.Module,
        potential: SeparablePotential,
        lr: float,
        *,
        dual: bool = False,
        printed: bool = False,
    ) -> Self:
        """Of a module, the potential scaled to the inputs of the units of each parameter (J.3).

        Args:
            module: whose parameters are trained, unless they need no gradient; their first
                dimension must be that of the units, as it is but for transposed convolutions.
            potential: as for `mirrorode.for_width`.
            lr: η > 0.
            dual: as above; the paper does not.
            printed: whether the power of the width is the one printed in the paper.

        Raises:
            InputError: as above, or for a potential that has no such form.
        """
        groups = [
            {"params": [it], "potential": for_width(potential, width_of(it), printed=printed)}
            for it in module.parameters()
            if it.requires_grad
        ]
        return cls(groups, potential, lr, dual=dual)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As for any optimizer; the group is checked first."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _require(group)
        except InputError:
            del self.param_groups[-1]
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; what ``closure`` gives, if there is one, which is called first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            potential, rate = group["potential"], float(group["lr"])
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                whole = parameter.grad.to_dense()  # itself, but for embeddings
                if not group["dual"]:
                    for theta, gradient in _pieces(parameter, whole):
                        theta.add_(potential.precondition(theta, gradient), alpha=-rate)
                    continue
                state = self.state[parameter]
                if not state:
                    state["dual"] = potential.gradient(parameter).clone()
                for theta, gradient, dual in _pieces(parameter, whole, state["dual"]):
                    dual.add_(gradient, alpha=-rate)
                    theta.copy_(potential.inverse_gradient(dual))
        return loss

    def state_dict(self) -> dict[str, Any]:
        """As for any optimizer; potentials as plain data."""
        found = super().state_dict()
        for group in found["param_groups"]:
            group["potential"] = describe(group["potential"])
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As for any optimizer.

        Raises:
            InputError: if it is not that of a `MirrorDescent`, or holds a potential of one's own
                that this optimizer does not have.
        """
        groups = state_dict["param_groups"]
        own = [group["potential"] for group in self.param_groups]
        if len(groups) == len(own):  # else the call below says what is wrong
            pairs = zip(groups, own, strict=True)
            groups = [group | {"potential": _known(group, it)} for group, it in pairs]
            for group, mine in zip(groups, self.param_groups, strict=True):
                _require(mine | {it: group.get(it) for it in ("potential", "lr", "dual")})
        super().load_state_dict(state_dict | {"param_groups": groups})


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of tensors of one shape, small enough on a CPU that what is made of them is cached."""
    plain = all(it.is_contiguous() for it in tensors)
    if not plain or tensors[0].device.type != "cpu":
        yield tensors
        return
    yield from zip(*(it.view(-1).split(PIECE) for it in tensors), strict=True)


def width_of(parameter: Tensor) -> int:
    """Inputs of a unit, (out, in, …): the entries over the first dimension; one for a bias."""
    return max(1, math.prod(parameter.shape[1:]))


def _known(group: dict[str, Any], own: SeparablePotential) -> Any:
    """The potential of a stored group."""
    description = group.get("potential")
    if description == describe(own):
        return own
    try:
        return rebuild(description)  # type: ignore[arg-type]
    except (InputError, TypeError, LookupError, AttributeError):
        must = "hold potentials of the package, or those of this optimizer"
        raise InputError(f"`state_dict` must {must}, but holds {description}") from None


def _require(group: dict[str, Any]) -> None:
    """Refuse a group that cannot be stepped."""
    potential = group["potential"]
    fine = isinstance(potential, SeparablePotential)
    require(fine, "potential", "be a separable potential", repr(potential))
    must = "be the same for every weight of a group"
    require(potential.uniform, "potential", must, repr(potential))
    require(isinstance(group["dual"], bool), "dual", "be True or False", repr(group["dual"]))
    rate = float(group["lr"]) if isinstance(group["lr"], Tensor) else group["lr"]
    require_number(rate, "lr", "be positive", 0.0, strict=True)
    for parameter in group["params"]:
        real = parameter.dtype in (torch.float32, torch.float64)
        require(real, "params", "be of dtype float32 or float64", parameter.dtype)
    require_mirror(potential, sum(it.numel() for it in group["params"]))

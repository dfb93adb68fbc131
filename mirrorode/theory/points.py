"""What the statements of the paper are made of, measured once at the saved points of a trajectory.

Everything is in the log domain and free of the clock: with dz/dσ = G and dt = dσ/𝓛, a derivative
in time is one in σ times 𝓛, and the factor cancels in every statement. Then

    dℓ/dσ = N = ‖G‖²_D,    dQ/dσ = T = θ·G = L (ℓ + S(p)),    M = ‖θ‖²_A,    A = ∇²R = D⁻¹.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.trajectory import Trajectory
from mirrorode.theory.margins import q_potential
from mirrorode.theory.subdifferential import least_norm

AT_ONCE = 1 << 22  # pre-activations and parameters that are held together
TINY = 1e-300


@dataclass(frozen=True, eq=False)
class Points:
    """Quantities at T points θ; (T,) where nothing else is said.

    Attributes:
        flow: the flow.
        theta: θ, (T, n).
        loss: ℓ = log(1/𝓛).
        q_min: the smallest margin.
        entropy: S(p) = −Σ p log p of the softmax weights.
        field: G of the least-norm selection, (T, n).
        growth: T = θ·G.
        speed: N = ‖G‖²_D.
        tangential: N − T²/M, as the square that it is.
        local: M = ‖θ‖²_A.
        q_hat: Q̂ = αQ(∇R(θ)); NaN if the potential has no degree.
    """

    flow: MirrorFlow
    theta: Tensor
    loss: Tensor
    q_min: Tensor
    entropy: Tensor
    field: Tensor
    growth: Tensor
    speed: Tensor
    tangential: Tensor
    local: Tensor
    q_hat: Tensor

    @classmethod
    def at(cls, flow: MirrorFlow, theta: Tensor) -> Points:
        """Measure at ``theta`` (T, n)."""
        held = len(flow.dataset) * sum(flow.network.units) + flow.network.size
        parts = [_measure(flow, some) for some in theta.split(max(1, AT_ONCE // held))]
        measured = [torch.cat(part) for part in zip(*parts, strict=True)]
        without = flow.potential.degree is None
        q_hat = torch.full_like(measured[0], torch.nan) if without else q_potential(flow, theta)
        names = [it.name for it in fields(cls)][2:-1]
        return cls(flow, theta, **dict(zip(names, measured, strict=True)), q_hat=q_hat)

    @property
    def hessian(self) -> Tensor:
        """A of a separable potential, (T, n)."""
        return self.flow.potential.hessian_product(self.theta, torch.ones_like(self.theta))

    @property
    def misalignment(self) -> Tensor:
        """β⁻² − 1, β the cosine of θ and dθ/dt in the metric A (Lemma G.6).

        Without cancellation, unlike 1 − β, which is round-off late in training.
        """
        return self.local * self.tangential / self.growth.square()


@dataclass(frozen=True, eq=False)
class Path:
    """The saved points of a trajectory, and what its integrator says about them.

    Attributes:
        trajectory: where they are from.
        points: what is measured there.
        loss: ℓ as the integrator has it, (T,).
        late: indices of the points with 𝓛 < 1, where the statements about late times begin.
    """

    trajectory: Trajectory
    points: Points

    @classmethod
    def along(cls, trajectory: Trajectory) -> Path:
        """Measure a trajectory."""
        return cls(trajectory, Points.at(trajectory.flow, trajectory.theta))

    @property
    def flow(self) -> MirrorFlow:
        """The flow."""
        return self.points.flow

    @property
    def degree(self) -> int:
        """L, of the network."""
        return self.flow.network.degree

    @property
    def alpha(self) -> float | None:
        """α, of the potential."""
        return self.flow.potential.degree

    @property
    def loss(self) -> Tensor:
        """ℓ as the integrator has it."""
        return self.trajectory.log_inverse_loss

    @property
    def residual(self) -> Tensor:
        """|ℓ as integrated − ℓ(θ)|."""
        return (self.loss - self.points.loss).abs()

    @cached_property
    def late(self) -> Tensor:
        """Indices of the points with 𝓛 < 1."""
        return torch.nonzero(self.loss > 0)[:, 0]

    @cached_property
    def soft_margin(self) -> Tensor:
        """log γ̃ at the late points; NaN if the potential has no degree."""
        power = self.degree / (self.alpha or torch.nan)
        return self.loss[self.late].log() - power * self.points.q_hat[self.late].log()

    def few(self, count: int) -> list[int]:
        """At most ``count`` late points, evenly spread over them, the last among them."""
        if len(self.late) <= count:
            return self.late.tolist()
        return self.late[torch.linspace(0, len(self.late) - 1, count).round().long()].tolist()


def _measure(flow: MirrorFlow, theta: Tensor) -> tuple[Tensor, ...]:
    q = flow.margins(theta)
    log_p = torch.log_softmax(-q, -1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    field = least_norm(flow, theta)
    metric = flow.potential
    stretched = metric.hessian_product(theta, theta)
    growth, local = (theta * field).sum(-1), (theta * stretched).sum(-1)
    speed = (field * metric.precondition(theta, field)).sum(-1)
    rest = field - (growth / local.clamp(min=TINY))[:, None] * stretched
    across = (rest * metric.precondition(theta, rest)).sum(-1)
    loss = -torch.logsumexp(-q, -1)
    return loss, q.amin(-1), entropy, field, growth, speed, across, local

"""The stage equations of Radau IIA, linearised at an iterate, with the softmax weights as unknowns.

In the clock x with dt = e^ν dx the unknowns at the three nodes are the dual Z_j, u = log μ with
μ_i = e^ν 𝓛 p_i, and ν:

    Z_j = z₀ + h Σ_k A_jk Σ_i μ_i(k) h_i(Z_k),    u_i + q_i(Z_j) = ν_j for each sample i,

and one scalar equation for the clock. The weights are never formed as exp(ℓ − q) inside a step:
late in training they are the multipliers of an index-2 constraint, and this is what keeps them.
Newton eliminates Z, drops second derivatives, and solves for (u, ν) alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mirrorode.flow import radau
from mirrorode.flow.kinks import Pairs, Rows
from mirrorode.flow.step import Step, push_signals, slide_coefficients
from mirrorode.problem.homogeneous import Forward

NEWTON_TOLERANCE = 1e-3  # of the error scale; at 3e-2 the noise reaches the error estimate


@dataclass(frozen=True)
class Stages:
    """The solution of the stage equations.

    Attributes:
        dual: Z, (3, n); theta the primal of it.
        log_mu: u, (3, K).
        nu: ν, (3,).
        rows: how the samples divide the step; flips and times: the crossings behind it.
        arrivals, arrival_times: pairs that reached their kink to stay on it.
        preactivations: at the nodes, one (3, K, units) a layer.
        extrapolated: Σ μ_i h_i at the nodes on the *start* pattern (3, n), for the error estimate.
        coefficients: ξ of the sliding pairs at the nodes, (3, S); in [0, 1] while they slide.
        dissipated: ∫‖ż‖²_D/Σμ over the step, the change of log(1/𝓛) that the velocity implies.
        iterations: of Newton; converged: False where an event in sight stopped it early.
    """

    dual: Tensor
    theta: Tensor
    log_mu: Tensor
    nu: Tensor
    rows: Rows
    flips: Pairs
    flip_times: Tensor
    arrivals: Pairs
    arrival_times: Tensor
    preactivations: list[Tensor]
    extrapolated: Tensor
    coefficients: Tensor
    dissipated: float
    iterations: int
    converged: bool


@dataclass
class Iterate:
    """The current guess of Z, u, ν, and the kinks that it crosses."""

    dual: Tensor
    u: Tensor
    nu: Tensor
    flips: Pairs
    times: Tensor
    arrivals: Pairs
    arrival_times: Tensor


def at_nodes(values: Tensor, rows: Rows) -> Tensor:
    """Values (3, R, …) of the rows that are valid at the nodes: (3, K, …)."""
    node = torch.arange(radau.STAGES, device=values.device)[:, None]
    return values[node, rows.at_node]


class System:
    """The linearised stage equations at one iterate."""

    def __init__(self, step: Step, it: Iterate, rows: Rows, forward: Forward) -> None:
        self.step, self.rows, self.forward = step, rows, forward
        self.u, self.nu, self.dual = it.u, it.nu, it.dual
        self.theta = step.flow.potential.inverse_gradient(it.dual)
        self.inverse = step.inverse(self.theta)
        gradient, signals = step.flow.network.backward(forward)
        step.stats.half_passes += radau.STAGES
        plain = step.y[rows.sample, None] * gradient
        self.at_nodes = at_nodes(plain, rows)
        self.signals = [at_nodes(signal, rows) for signal in signals]
        self.grad = step.project(self.theta, plain)

    def factorise(self) -> tuple[Tensor, Tensor]:
        """LU factors of the matrix in (u, ν), of size 3(K + 1)."""
        step, rows, s, count = self.step, self.rows, radau.STAGES, len(self.step.x)
        left = self.at_nodes * self.inverse[:, None, :]
        gram = left.flatten(0, 1) @ self.grad.flatten(0, 1).T
        gram = gram.reshape(s, count, s, -1) * step.h * rows.quadrature[:, None]
        mu = torch.exp(self.u)
        summed = gram.new_zeros(s, count, s, count).index_add(3, rows.sample, gram) * mu
        matrix = gram.new_zeros(s * (count + 1), s * (count + 1))
        top = s * count
        matrix[:top, :top] = summed.reshape(top, top)
        matrix.diagonal()[:top] += 1.0
        share = torch.softmax(self.u, -1)
        for j in range(s):
            here = slice(j * count, (j + 1) * count)
            matrix[here, top + j] = -1.0
            matrix[top + j, here] = share[j]
            matrix[top + j, top + j] = -step.clock.follows
        # A singular matrix shows as a non-finite update, which ends the iteration.
        return torch.linalg.lu_factor_ex(matrix)[:2]

    def update(self, factors: tuple[Tensor, Tensor]) -> tuple[float, Tensor, Tensor, Tensor]:
        """One Newton update: its size, and the new Z, u, ν."""
        step, u, count = self.step, self.u, len(self.step.x)
        mu = torch.exp(u)
        q = step.y * at_nodes(self.forward.output, self.rows)
        defect = step.dual + self._integrate(mu) - self.dual
        residual = u + q - self.nu[:, None]
        total = torch.logsumexp(u, -1)
        clock = total - step.clock.follows * self.nu - step.clock.offset
        moved = (defect * self.inverse)[:, None, :] @ self.at_nodes.mT
        right = torch.cat([-(residual + moved[:, 0]).reshape(-1), -clock])
        solved = torch.linalg.lu_solve(*factors, right[:, None])[:, 0]
        du, dnu = solved[: 3 * count].reshape(3, count), solved[3 * count :]
        dual_change = defect + self._integrate(mu * du)
        share = torch.softmax(u, -1)
        size = torch.stack(
            [
                (dual_change / step.scale).square().mean().sqrt() / NEWTON_TOLERANCE,
                (share * residual.abs()).sum(-1).amax() / step.weight_tolerance,
                (share * torch.expm1(du.clamp(max=30.0)).abs()).sum(-1).amax()
                / step.weight_tolerance,
            ]
        ).amax()
        moved_u = move_log_weights(u, du, total[:, None])
        return float(size), self.dual + dual_change, moved_u, self.nu + dnu

    def _integrate(self, mu: Tensor) -> Tensor:
        """h Σ_k ∫ l_k Σ_r μ_r(k) h_r(k) up to each node: (3, n)."""
        weight = self.step.h * self.rows.quadrature * mu[:, self.rows.sample]
        return weight.flatten(1) @ self.grad.flatten(0, 1)

    def velocity(self) -> Tensor:
        """Σ μ_i h_i at the nodes on the pattern valid there: (3, n)."""
        mu = torch.exp(self.u)[:, None, :]
        return (mu @ at_nodes(self.grad, self.rows))[:, 0]

    def _dissipated(self, it: Iterate) -> float:
        """The Radau quadrature of ‖ż‖²_D/Σμ, exactly over each window between two crossings."""
        if len(self.rows.sample) != len(self.step.x) + len(it.flips):
            return math.nan  # crossings have not settled
        mu, order = torch.exp(it.u)[..., None], torch.argsort(it.times)
        times = it.times[order]
        edges = torch.cat([times.new_zeros(1), times, times.new_ones(1)])
        integral = radau.evaluate(radau.SLOPE_INTEGRAL, edges).diff(dim=0)
        active = torch.arange(mu.shape[1], device=mu.device)
        # The rows of a sample follow its crossings in time.
        row = torch.argsort(torch.argsort(it.flips.sample[order], stable=True)) + len(active)
        total = 0.0
        velocity = (mu * self.grad[:, active]).sum(1)
        for window, part in enumerate(integral):
            if window > 0:
                sample, new = it.flips.sample[order][window - 1], row[window - 1]
                change = self.grad[:, new] - self.grad[:, active[sample]]
                velocity = velocity + mu[:, sample] * change
                active[sample] = new
            speed = (self.inverse * velocity.square()).sum(-1) / mu[..., 0].sum(-1)
            total += float(part @ speed)
        return self.step.h * total

    def finish(self, it: Iterate, after: Forward, iteration: int, *, converged: bool) -> Stages:
        """The solution as it stands, with the network at its stages."""
        count, mu = len(self.step.x), torch.exp(it.u)
        smooth = (mu[:, None, :] @ self.grad[:, :count])[:, 0]
        free = (mu[:, None, :] @ self.at_nodes)[:, 0]
        weight = mu * self.step.y
        weighted = [weight[..., None] * signal for signal in self.signals]
        pushes = push_signals(self.step.flow.network, weighted)
        coefficients = slide_coefficients(self.step, self.theta, weight, free, pushes)
        theta = self.step.flow.potential.inverse_gradient(it.dual)
        pre = [at_nodes(value, self.rows) for value in after.preactivations]
        return Stages(
            it.dual, theta, it.u, it.nu, self.rows, it.flips, it.times, it.arrivals,
            it.arrival_times, pre, smooth, coefficients, self._dissipated(it), iteration, converged,
        )  # fmt: skip


def move_log_weights(u: Tensor, du: Tensor, total: Tensor) -> Tensor:
    """Update u along the curve that fits: the weight itself where it is large, else its logarithm.

    A linear change of a weight that carries more than 1 % of the sum is trusted; a weight that
    comes from nothing is put at 5 % at most and then solved for.
    """
    large = u - total > torch.log(u.new_tensor(0.01))
    linear = torch.where(du < -0.9, du.clamp(min=-30.0), torch.log1p(du.clamp(min=-0.9)))
    entering = torch.minimum(u + du, torch.maximum(u, total + torch.log(u.new_tensor(0.05))))
    small = torch.where(du > 0, entering, u + du.clamp(min=-30.0))
    return torch.where(large, u + linear, small)

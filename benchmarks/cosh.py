"""The cosh flow of a linear model on its way to the L_∞ max margin, far beyond where z overflows.

For f = w·x the field G = Σ p_i y_i x_i is the gradient of a concave ℓ, and a step z₊ = z + hG(θ₊)
of the implicit Euler method is the minimum of a convex function. It is found in θ, with sinh θ in
units of e^M: nothing overflows. Late in training G is constant to round-off (the softmax weights
are the dual of the linear program), and such a step is exact, however long: z = ∫G dσ forgets what
it began with. `solve` goes to ``begin`` times the best margin, one step from there to each line;
the last line of the output compares such a step with `solve` where both reach, and beyond that the
lines rest on the argument alone.

    python benchmarks/cosh.py
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

import mirrorode as mo
from mirrorode.experiment.scenario import ResultTable

COLUMNS = ("data", "log(1/loss)", "log t", "‖θ‖_∞", "1 − margin/LP", "the same times log(1/loss)")
SETTLED = 1e-12


@dataclass(frozen=True)
class Benchmark:
    """What is followed."""

    seeds: tuple[int, ...] = (0, 1)
    """Of the data sets: 12 samples in 6 dimensions."""
    begin: float = 20.0
    """Multiples of the best margin up to which `solve` integrates."""
    losses: tuple[float, ...] = (1e3, 1e6, 1e9)
    """log(1/loss) of the lines after that."""


def linear_data(seed: int) -> mo.Dataset:
    """Twelve Gaussian inputs, labelled by a hyperplane."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 6, generator=generator).double()
    return mo.Dataset(x, torch.sign(x @ torch.randn(6, generator=generator).double()))


def step(flow: mo.MirrorFlow, dual: Tensor, start: Tensor, log_size: float) -> Tensor:
    """The θ with sinh θ = dual + e^M G(θ), M = ``log_size``, by damped Newton steps from ``start``.

    In units of e^M it is where Σ cosh θ − dual·θ − ℓ(θ) has its minimum.
    """
    features = flow.dataset.y[:, None] * flow.dataset.x
    theta, pull = start.clone(), dual * math.exp(-log_size)

    def defect(point: Tensor) -> Tensor:
        grown = torch.exp(point.abs() - log_size) - torch.exp(-point.abs() - log_size)
        return 0.5 * torch.sign(point) * grown - pull - flow.weights(point) @ features

    for _ in range(500):
        rest, p = defect(theta), flow.weights(theta)
        bend = 0.5 * (torch.exp(theta.abs() - log_size) + torch.exp(-theta.abs() - log_size))
        hessian = torch.diag(bend) + features.T @ (torch.diag(p) - torch.outer(p, p)) @ features
        move = torch.linalg.lstsq(hessian, -rest[:, None], driver="gelsd").solution[:, 0]
        move = move / move.abs().amax().clamp(min=1.0)
        theta = theta + move
        if float(move.abs().amax()) < SETTLED * max(1.0, log_size):
            break
    return theta


def land(
    flow: mo.MirrorFlow, dual: Tensor, best: mo.MaxMargin, loss: float
) -> tuple[Tensor, float]:
    """The step that ends at log(1/loss) = ``loss``, and its log t: dℓ/dM is the best margin γ.

    With e^ℓ growing like σ^γ and σ = e^M, t = ∫e^ℓ dσ is e^ℓ σ/(1 + γ).
    """
    log_size, theta = loss / best.margin, loss / best.margin * best.direction
    for _ in range(50):
        theta = step(flow, dual, theta, log_size)
        missing = (loss - float(flow.log_inverse_loss(theta))) / best.margin
        if abs(missing) < SETTLED * log_size:
            break
        log_size, theta = log_size + missing, theta + missing * best.direction
    return theta, loss + log_size - math.log1p(best.margin)


def line(
    flow: mo.MirrorFlow, theta: Tensor, log_time: float, best: mo.MaxMargin, seed: int
) -> tuple[str, ...]:
    """One line of the table."""
    loss = float(flow.log_inverse_loss(theta))
    ratio = float(mo.norm_margin(flow, theta, math.inf)) / best.margin
    size = float(theta.abs().amax())
    return (
        str(seed), f"{loss:.4g}", f"{log_time:.6g}", f"{size:.6g}", f"{1 - ratio:.3e}",
        f"{(1 - ratio) * loss:.4f}",
    )  # fmt: skip


def main(benchmark: Benchmark) -> None:
    """Follow every data set and write ``benchmarks/cosh.md``."""
    rows, checks = [], []
    for seed in benchmark.seeds:
        data = linear_data(seed)
        flow = mo.MirrorFlow(mo.MLP((6, 1)), data, mo.Cosh())
        best = mo.max_margin(data.x, data.y, math.inf)
        marks = [mo.LogInverseLoss(it * benchmark.begin * best.margin) for it in (0.5, 1.0)]
        start = 0.1 * torch.ones(6, dtype=torch.float64)
        run = mo.solve(flow, start, until=marks[1], saveat=marks[:1])
        assert isinstance(run, mo.Trajectory)
        half, end = run.theta[1], run.theta[2]
        loss, log_time = float(run.log_inverse_loss[2]), float(run.log_time[2])
        stepped, stepped_time = land(flow, flow.potential.gradient(half), best, loss)
        apart = float((stepped - end).abs().amax() / end.abs().amax())
        checks.append(f"θ {apart:.1e}, log t {abs(stepped_time - log_time):.1e}")
        rows.append(line(flow, end, log_time, best, seed))
        for loss in benchmark.losses:
            landed = land(flow, flow.potential.gradient(end), best, loss)
            rows.append(line(flow, *landed, best, seed))
    found = ResultTable("Cosh on linear data, against the linear program", COLUMNS, tuple(rows))
    table = Table(*found.columns, title=found.title)
    for row in found.rows:
        table.add_row(*row)
    Console().print(table)
    check = f"One step from half way to the end of `solve` is off by: {'; '.join(checks)}."
    Console().print(check)
    text = f"{found.to_markdown()}\n{check}\n"
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))

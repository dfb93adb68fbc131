"""Appendix G.3: gradient flow of θ = u ⊙ v is the mirror flow of the hyperbolic entropy.

Both are integrated from the same weights, each by an integrator of its own: gradient flow of (u, v)
with u² − v² = 2√λ, whose network has twice the degree, and the flow of the entropy with λ, for a
linear classifier and for a two-layer ReLU network. At equal loss u ⊙ v and θ are the same, and the
entropy has taken twice the time. In the paper's formula u² + v² = √(4θ² + λ) the letter λ is
(u² − v²)², four times that of the entropy, and time is not doubled: the flow of the entropy with
that λ is integrated too, and is another one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import mirrorode as mo
from mirrorode.experiment.figures import TEACHER, colour
from mirrorode.experiment.integration import Integration
from mirrorode.experiment.scenario import ResultTable, Scenario
from mirrorode.problem.errors import (
    LARGEST,
    SEEDS,
    require_integer,
    require_memory,
    require_number,
    require_rtol,
)
from mirrorode.problem.reparameterized import difference, factors, product, reparameterized

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RUN_TIME = "1 min"

PAPER = 4.0
"""The λ of the paper's formula, (u² − v²)², in units of that of the entropy."""
COARSER = 100.0
"""All flows but that with the paper's λ are integrated with rtol and with so many times it."""
LINE = {"linear": "--", "relu": "-"}
"""The two problems, and how they are drawn."""
SHOWN = 12
"""Weights of the ReLU network whose share of ‖θ‖ is drawn: the largest at the end."""
EARLY = 16
"""Losses at which the flows are compared before log(1/𝓛) = 2; five a decade follow."""

Runs = Mapping[str, mo.Trajectory]


@dataclass(frozen=True)
class Reparameterization(Scenario):
    """What can be changed."""

    lam: float = 0.1
    """λ of the entropy; u² − v² is 2√λ."""
    dim: int = 4
    """Inputs of the linear classifier."""
    neurons: int = 20
    """Hidden width of the ReLU network."""
    samples: int = 50
    """Samples of each problem."""
    seed: int = 42
    """Seed of the samples; starts have seed 0."""
    limit: float = 1e6
    """log(1/loss) to integrate to."""
    rtol: float = 1e-8
    """The finer of the two relative tolerances; the other is a hundred times as large."""

    def quick(self) -> Reparameterization:
        """A smaller ReLU network, not as far, nor as exactly."""
        return replace(self, neurons=6, samples=16, limit=100.0, rtol=1e-7)

    def jobs(self, device: str) -> list[Integration]:
        """Each flow of each problem at two tolerances, and that with the paper's λ at one."""
        require_number(self.lam, "lam", "be positive", 0.0, strict=True)
        for name in ("dim", "neurons"):
            require_integer(getattr(self, name), name, 1, LARGEST)
        require_integer(self.samples, "samples", 2, LARGEST)
        require_integer(self.seed, "seed", 0, SEEDS)
        require_memory(8 * self.samples * self.dim, "samples")
        require_number(self.limit, "limit", "be at least 2", 2.0, strict=False)
        require_rtol(self.rtol)
        networks = {"linear": mo.MLP((self.dim, 1)), "relu": mo.MLP((2, self.neurons, 1))}
        data = {
            "linear": _separable(self.samples, self.dim, self.seed),
            "relu": mo.teacher_student(self.samples, seed=self.seed),
        }
        return [
            job
            for name, network in networks.items()
            for job in self._jobs_of(name, network, data[name].to(device), device)
        ]

    def _jobs_of(
        self, name: str, network: mo.MLP, data: mo.Dataset, device: str
    ) -> list[Integration]:
        theta = network.initial(0).to(device)
        entropy = mo.MirrorFlow(network, data, mo.HyperbolicEntropy(self.lam))
        paper = mo.MirrorFlow(network, data, mo.HyperbolicEntropy(PAPER * self.lam))
        product_flow = mo.MirrorFlow(reparameterized(network), data, mo.Euclidean())
        uv, coarse = factors(theta, self.lam), COARSER * self.rtol
        # Met exactly by both flows: dense output is less accurate than the agreement to be seen.
        levels = _levels(float(entropy.log_inverse_loss(theta)), self.limit)
        save = [mo.LogInverseLoss(level) for level in levels]
        parts = (
            ("uv-fine", product_flow, uv, self.rtol),
            ("uv-coarse", product_flow, uv, coarse),
            ("entropy-fine", entropy, theta, self.rtol),
            ("entropy-coarse", entropy, theta, coarse),
            ("entropy-paper", paper, theta, coarse),
        )
        until = save[-1]
        return [
            Integration(f"{name}-{it}", flow, at, until, save, rtol) for it, flow, at, rtol in parts
        ]

    def figure(self, runs: Runs) -> Figure:
        """The flow on its hyperbola and the weights on the left, differences on the right."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.9, 5.6), layout="constrained")
        axes = figure.subplots(2, 2)
        _draw_hyperbola(axes[0, 0], runs["relu-uv-fine"], self.lam)
        _draw_weights(axes[1, 0], runs)
        _draw_differences(axes[0, 1], runs, self.rtol, time=False)
        _draw_differences(axes[1, 1], runs, self.rtol, time=True)
        handles, names = axes[1, 1].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=4)
        return figure

    def tables(self, runs: Runs) -> list[ResultTable]:
        """The largest differences between both flows over all saved losses."""
        rows = []
        for problem, (name, kind) in ((p, it) for p in LINE for it in _kinds(self.rtol)):
            uv, entropy = _pair(runs, problem, kind)
            found = compare(uv, entropy)
            delta = difference(uv.theta)
            drift = (delta - delta[0]).abs().max() / delta[0].abs().max()
            cells = (found.weights.max(), found.direction.max(), _farthest(found.ratio), drift)
            rows.append((_name(problem), name, *(f"{float(it):.1e}" for it in cells)))
        title = (
            "Gradient flow of (u, v) against the flow of the entropy with λ = (u² − v²)²/4, and "
            "with the paper's λ, four times that: largest relative differences at equal "
            f"log(1/loss) up to {self.limit:g}"
        )
        columns = ("problem", "entropy", "θ", "θ/‖θ‖", "t_hyp/t_uv − 2", "drift of u² − v²")
        return [ResultTable(title, columns, tuple(rows))]

    def plotted(self, runs: Runs) -> ResultTable:
        """The differences at every saved loss, with log t of both flows."""
        rows = []
        for problem, (_, kind) in ((p, it) for p in LINE for it in _kinds(self.rtol)):
            uv, entropy = _pair(runs, problem, kind)
            found = compare(uv, entropy)
            values = (uv.log_inverse_loss, uv.log_time, entropy.log_time, *found.columns())
            points = torch.stack(values, 1).tolist()
            rows += [(problem, kind, *(f"{value:.10g}" for value in it)) for it in points]
        columns = ("problem", "entropy", "log_inverse_loss", "log_time_uv", "log_time_entropy")
        differences = ("weights", "direction", "log_time_ratio_less_log_2")
        return ResultTable("Differences between the flows", columns + differences, tuple(rows))


@dataclass(frozen=True)
class Differences:
    """Between gradient flow of (u, v) and a flow of an entropy at equal loss, (T,) each.

    Attributes:
        weights: ‖u ⊙ v − θ‖/‖θ‖.
        direction: of the two unit vectors.
        log_ratio: log t_hyp − log t_uv − log 2; zero at the start, where both times are.
    """

    weights: Tensor
    direction: Tensor
    log_ratio: Tensor

    @property
    def ratio(self) -> Tensor:
        """t_hyp/t_uv − 2."""
        return 2 * torch.expm1(self.log_ratio)

    def columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """As they are plotted."""
        return self.weights, self.direction, self.log_ratio


def compare(uv: mo.Trajectory, entropy: mo.Trajectory) -> Differences:
    """The differences at the saved points of two runs, which are at equal losses."""
    ours, theirs = product(uv.theta), entropy.theta
    sizes = theirs.norm(dim=1)
    unit = ours / ours.norm(dim=1, keepdim=True) - theirs / sizes[:, None]
    ratio = entropy.log_time - uv.log_time - math.log(2)
    ratio = torch.where(uv.log_time.isfinite(), ratio, 0.0)
    return Differences((ours - theirs).norm(dim=1) / sizes, unit.norm(dim=1), ratio)


def _separable(samples: int, dim: int, seed: int) -> mo.Dataset:
    """Normal points with the sign of a random linear function of them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, dim, generator=generator, dtype=torch.float64)
    normal = torch.randn(dim, generator=generator, dtype=torch.float64)
    return mo.Dataset(x, torch.where(x @ normal > 0, 1.0, -1.0))


def _levels(start: float, limit: float) -> list[float]:
    """log(1/𝓛) where both flows are compared: evenly up to 2, then five a decade."""
    early = torch.linspace(min(start, 1.0), 2.0, EARLY, dtype=torch.float64)[1:]
    steps = max(1, round(5 * math.log10(limit / 2)))
    late = torch.logspace(math.log10(2), math.log10(limit), steps + 1, dtype=torch.float64)[1:]
    between = [level for level in [*early.tolist(), *late.tolist()[:-1]] if start < level < limit]
    return [*between, limit]


def _kinds(rtol: float) -> list[tuple[str, str]]:
    """The comparisons: how a row of the table is called, and the entropy run."""
    return [
        (f"rtol {rtol:.0e}", "fine"),
        (f"rtol {COARSER * rtol:.0e}", "coarse"),
        ("paper's λ", "paper"),
    ]


def _name(problem: str) -> str:
    return problem.replace("relu", "ReLU")


def _pair(runs: Runs, problem: str, kind: str) -> tuple[mo.Trajectory, mo.Trajectory]:
    factor = "coarse" if kind == "paper" else kind
    return runs[f"{problem}-uv-{factor}"], runs[f"{problem}-entropy-{kind}"]


def _farthest(values: Tensor) -> Tensor:
    """The entry farthest from zero, with its sign."""
    return values[values.abs().argmax()]


def _draw_hyperbola(axis: Axes, run: mo.Trajectory, lam: float) -> None:
    """All pairs (u_k, v_k) of the ReLU network: on one hyperbola, from start to end."""
    high, shade = 2.5, colour(run.flow.potential)
    v = torch.linspace(-high, high, 201, dtype=torch.float64)
    u = torch.sqrt(v**2 + 2 * math.sqrt(lam))
    axis.plot(v, u, color="k", lw=0.8, label=r"$u^2 - v^2 = 2\sqrt{\lambda}$")
    axis.plot(v, v.abs(), ":", color="0.5", lw=0.8, label=r"$u = |v|$, balanced")
    for number, (fill, size, when) in enumerate((("none", 16, "start"), (shade, 5, "later"))):
        points = run.theta[:1] if number == 0 else run.theta[1:]
        now_u, now_v = (it.reshape(-1) for it in points.chunk(2, -1))
        seen = (now_v.abs() < high) & (now_u < high)
        axis.scatter(
            now_v[seen], now_u[seen], s=size, facecolors=fill, edgecolors=shade,
            linewidths=0.7 if number == 0 else 0, zorder=3 - number, label=f"weights, {when}",
        )  # fmt: skip
    axis.set(xlim=(-high, high), ylim=(0, high), xlabel="$v$", ylabel="$u$")
    axis.set(title="Gradient flow of (u, v), ReLU: every weight")
    axis.legend(loc="upper center")


def _draw_weights(axis: Axes, runs: Runs) -> None:
    """Shares θ_k/‖θ‖ of the largest weights of the ReLU network, by both flows."""
    uv, entropy = _pair(runs, "relu", "fine")
    shown = entropy.theta[-1].abs().argsort(descending=True)[:SHOWN]
    parts = (
        (entropy, entropy.theta, "-", r"$\theta$, entropy"),
        (uv, product(uv.theta), "o", r"$u\,v$, gradient flow"),
    )
    for run, theta, style, text in parts:
        share = (theta / theta.norm(dim=1, keepdim=True))[:, shown]
        drawn = axis.plot(
            run.log_inverse_loss,
            share,
            style,
            color=colour(run.flow.potential),
            lw=0.8,
            ms=2,
            mew=0,
        )
        drawn[0].set_label(text)
    axis.set(title=f"The {len(shown)} largest weights, ReLU", ylabel=r"$\theta_k / \|\theta\|$")
    _losses(axis, entropy)
    axis.set_ylim(top=axis.get_ylim()[1] + 0.12)
    axis.legend(loc="upper right", ncols=2)


def _losses(axis: Axes, run: mo.Trajectory) -> None:
    """log(1/𝓛) from the start of ``run`` on, evenly up to 2 and logarithmic above."""
    low, high = (float(it) for it in run.log_inverse_loss[[0, -1]])
    axis.set_xscale("symlog", linthresh=2.0, linscale=1.0)
    ticks = {-5.0: "−5", 0.0: "0", 2.0: "2"} | {10.0**k: f"$10^{{{k}}}$" for k in range(1, 10)}
    ticks = {tick: text for tick, text in ticks.items() if low <= tick <= high * 1.01}
    axis.set(xlim=(min(low, 0.0) - 0.5, high * 1.5), xlabel=r"$\log(1/\mathcal{L})$")
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.minorticks_off()


def _draw_differences(axis: Axes, runs: Runs, rtol: float, *, time: bool) -> None:
    shades = {"fine": "k", "coarse": "0.6", "paper": TEACHER}
    names = {"fine": f"rtol {rtol:g}", "coarse": f"rtol {COARSER * rtol:g}", "paper": "paper's λ"}
    for problem, style in LINE.items():
        for kind, shade in shades.items():
            uv, entropy = _pair(runs, problem, kind)
            found = compare(uv, entropy)
            values = found.log_ratio.abs() if time else found.direction
            text = f"{names[kind]}, {_name(problem)}"
            axis.plot(uv.log_inverse_loss[1:], values[1:], style, color=shade, lw=1, label=text)
    _losses(axis, runs["linear-uv-fine"])
    if not time:
        name = r"$\|\hat\theta_{uv} - \hat\theta_{hyp}\|$, unit vectors"
        axis.set(yscale="log", ylabel=name, title="Difference in direction at equal loss")
        return
    name = r"$|\log t_{hyp} - \log t_{uv} - \log 2|$"
    axis.set(yscale="log", ylabel=name, title="Difference in time at equal loss")
    axis.axhline(math.log(2), color=TEACHER, lw=0.8, ls=":", label="time not doubled: log 2")
    axis.set_ylim(top=10.0)


SCENARIO = Reparameterization

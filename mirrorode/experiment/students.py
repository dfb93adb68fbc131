"""The students of the paper's teacher: the trajectories that most scenarios share.

A student is a potential, a number of layers and a seed. Whichever scenario comes first integrates
it; the others find it stored, because the folder is named after the problem and the settings, not
after the scenario.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from mirrorode.experiment import paper
from mirrorode.experiment.integration import Integration
from mirrorode.experiment.scenario import Scenario
from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.stopping import LogInverseLoss, LogTime, StoppingRule
from mirrorode.flow.trajectory import Trajectory
from mirrorode.problem.datasets import teacher_student
from mirrorode.problem.errors import LARGEST, require_integer, require_number, require_rtol
from mirrorode.problem.networks import MLP
from mirrorode.problem.potentials import SeparablePotential

DECADE = 4  # saved points of a three-layer student a decade of log(1/𝓛)
TIMES = [math.log(10.0) * power for power in range(2, 8)]  # of its saved points, as log t
DEEP = "deep-"  # before the names of three-layer students

Runs = Mapping[str, Trajectory]


@dataclass(frozen=True)
class Students(Scenario):
    """A scenario about students; its subclasses say which."""

    seeds: int = 1
    """Student seeds, from 0."""
    data_seed: int = 42
    """Seed of the samples and the teacher."""
    neurons: int = 100
    """Hidden width of the students."""
    samples: int = 200
    """Points on the unit circle."""
    limit: float = 1e9
    """log(1/loss) to go on to; the paper's is 115.13."""
    rtol: float = 1e-5
    """Relative tolerance of the integration."""

    two: ClassVar[Sequence[str]] = ()
    """Potentials of the two-layer students, as `paper.ALL` calls them."""
    three: ClassVar[Sequence[str]] = ()
    """Potentials of the three-layer students."""

    def quick(self) -> Self:
        """One small student a potential, on fewer points and not as far."""
        return replace(self, seeds=1, neurons=10, samples=30, limit=1e5, rtol=1e-4)

    def jobs(self, device: str) -> list[Integration]:
        """One trajectory a potential, number of layers and seed."""
        require_integer(self.seeds, "seeds", 1, 1000)
        require_integer(self.neurons, "neurons", 1, LARGEST)
        require_rtol(self.rtol)
        must = "be at least 115.13, where the paper stops"
        require_number(self.limit, "limit", must, paper.LOSS, strict=False)
        chosen = [(2, name) for name in self.two] + [(3, name) for name in self.three]
        return [
            student(self, layers, name, seed, device)
            for layers, name in chosen
            for seed in range(self.seeds)
        ]


def student(
    settings: Students,
    layers: int,
    name: str,
    seed: int,
    device: str,
    potential: SeparablePotential | None = None,
) -> Integration:
    """The trajectory of one student by a potential of the paper, or by one of another name."""
    data = teacher_student(samples=settings.samples, seed=settings.data_seed).to(device)
    network = MLP((2, *[settings.neurons] * (layers - 1), 1))
    flow = MirrorFlow(network, data, potential or paper.ALL[name])
    return trained(flow, name, seed, settings.limit, settings.rtol)


def trained(flow: MirrorFlow, name: str, seed: int, limit: float, rtol: float) -> Integration:
    """The trajectory of a student by this flow, its potential called ``name``."""
    network, data = flow.network, flow.dataset
    assert isinstance(network, MLP)
    layers = len(network.widths) - 1
    hidden = network.widths[1:-1]
    shape = "-".join(map(str, hidden)) if layers < 5 else f"{hidden[0]}x{len(hidden)}"
    study = f"students-{network.widths[0]}-{shape}-1"
    saveat = _points(limit) if layers > 2 else None
    theta = network.initial(seed).to(data.x)
    return Integration(
        key(layers, name, seed), flow, theta, LogInverseLoss(limit), saveat, rtol, study
    )


def key(layers: int, name: str, seed: int) -> str:
    """The name of a student's run."""
    return f"{DEEP if layers > 2 else ''}{name}-seed{seed}"


def _points(limit: float) -> list[StoppingRule]:
    """What is kept of a three-layer student, whose weights are too many to keep every step."""
    decades = math.log10(limit)
    count = DECADE * math.ceil(decades) + 1
    losses = torch.logspace(0.0, decades, count, dtype=torch.float64).tolist()
    return [*map(LogInverseLoss, sorted([*losses, paper.LOSS])), *map(LogTime, TIMES)]


def of(runs: Runs, layers: int, name: str) -> list[Trajectory]:
    """The runs of the students of a potential, by seed."""
    start = f"{DEEP if layers > 2 else ''}{name}-seed"
    return [run for found, run in runs.items() if found.startswith(start)]


def theta_at(run: Trajectory, rule: StoppingRule) -> Tensor | None:
    """θ where ``rule`` is met; None where the run ended before, or nothing was saved there."""
    for point in range(len(run.log_time)):
        if rule.at(float(run.log_time[point]), float(run.log_inverse_loss[point])):
            return run.theta[point]
    if not run.steps or not rule.met(float(run.log_time[-1]), float(run.log_inverse_loss[-1])):
        return None
    if rule.by_time:
        return run.at(log_time=rule.target)
    return run.at(log_inverse_loss=rule.target)

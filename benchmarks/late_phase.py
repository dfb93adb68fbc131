"""What the paper's two-layer problem costs: the integrator of the project beside torchdiffeq.

For each potential, ``method="auto"`` and ``method="dopri5"`` in log time, at the same tolerance,
one after the other in one process, over three stretches: from the initial point to log(1/𝓛) = 115,
which dopri5 does not reach within its budget of steps; from 5 to 8, where it is only slow; and
``auto`` alone from 115 to 1e6. Counts are exact; wall times mean something only as ratios.

    python benchmarks/late_phase.py
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table

import mirrorode as mo
from mirrorode.experiment.figures import label
from mirrorode.experiment.scenario import ResultTable

PAPER_LOSS = 115.0
POTENTIALS = (mo.HyperbolicEntropy(0.1), mo.Euclidean(), mo.SmoothedHomogeneous(3, 1.0))
COLUMNS = (
    "potential", "log(1/loss)", "auto: steps", "evals", "slides", "dopri5: got to", "evals",
    "evals ratio", "time ratio",
)  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """What is compared."""

    rtol: float = 1e-5
    """Relative tolerance of both methods."""
    budget: int = 4000
    """Accepted steps of dopri5 before it is stopped."""
    data_seed: int = 42
    """Seed of the samples and the teacher."""
    out: Path = Path("benchmarks/late_phase.md")
    """Where the table is written."""


def compare(setting: Benchmark) -> ResultTable:
    """Run both methods on every potential, side by side."""
    data, network = mo.teacher_student(seed=setting.data_seed), mo.MLP((2, 100, 1))
    rows = []
    for potential in POTENTIALS:
        flow = mo.MirrorFlow(network, data, potential)
        start, rows_here = network.initial(0), []
        for low, high in ((None, PAPER_LOSS), (5.0, 8.0), (PAPER_LOSS, 1e6)):
            begin = start if low is None else _solve(setting, flow, start, low).theta[-1]
            ours = _solve(setting, flow, begin, high)
            peer = None if low == PAPER_LOSS else _solve(setting, flow, begin, high, "dopri5")
            rows_here.append(_row(ours, peer))
        rows += rows_here
    return ResultTable(f"Two-layer problem at rtol {setting.rtol:g}", COLUMNS, tuple(rows))


def _solve(
    setting: Benchmark, flow: mo.MirrorFlow, start: torch.Tensor, loss: float, method: str = "auto"
) -> mo.Trajectory:
    budget = setting.budget if method != "auto" else 100_000
    found = mo.solve(
        flow, start, until=mo.LogInverseLoss(loss), method=method, max_steps=budget,
        rtol=setting.rtol, atol=0.01 * setting.rtol,
    )  # fmt: skip
    assert isinstance(found, mo.Trajectory)
    return found


def _row(ours: mo.Trajectory, peer: mo.Trajectory | None) -> tuple[str, ...]:
    loss, stats = ours.log_inverse_loss, ours.stats
    stretch = f"{float(loss[0]):.3g} to {float(loss[-1]):.3g}"
    cells = (label(ours.flow.potential), stretch, str(stats.steps), str(stats.evaluations))
    if peer is None:
        return (*cells, str(stats.slides), "", "", "", "")
    reached, theirs = float(peer.log_inverse_loss[-1]), peer.stats
    outcome = f"{reached:.3g} ({peer.status.name})"
    if not peer.success:
        return (*cells, str(stats.slides), outcome, str(theirs.evaluations), "", "")
    ratios = (theirs.evaluations / stats.evaluations, theirs.wall_seconds / stats.wall_seconds)
    shown = (f"{ratio:.3g}" for ratio in ratios)
    return (*cells, str(stats.slides), outcome, str(theirs.evaluations), *shown)


def main() -> None:
    """Print the table and write it as Markdown."""
    setting = tyro.cli(Benchmark)
    torch.set_num_threads(1)
    found = compare(setting)
    table = Table(*found.columns, title=found.title)
    for row in found.rows:
        table.add_row(*row)
    Console().print(table)
    setting.out.write_text(found.to_markdown(), encoding="utf-8")


if __name__ == "__main__":
    main()

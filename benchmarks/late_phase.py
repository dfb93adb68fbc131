"""What the paper's two-layer problem costs: the integrator of the project beside torchdiffeq.

For each potential, from the initial point: evaluations, steps and wall time of ``method="auto"`` to
log(1/𝓛) = 115 and on to 1e6, and of ``method="dopri5"`` in log time within a budget of evaluations,
both at the same tolerance, one after the other in one process. Counts are exact; wall times mean
something only as the ratio of the two.

    python benchmarks/late_phase.py [--budget STEPS]
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
    "potential", "method", "status", "log(1/loss)", "steps", "evaluations", "slides", "seconds",
    "evaluations per unit of log(1/loss)",
)  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """What is compared."""

    rtol: float = 1e-5
    """Relative tolerance of both methods."""
    budget: int = 3000
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
        flow, start = mo.MirrorFlow(network, data, potential), network.initial(0)
        tolerance = {"rtol": setting.rtol, "atol": 0.01 * setting.rtol}
        near, far = mo.LogInverseLoss(PAPER_LOSS), mo.LogInverseLoss(1e6)
        rows.append(_row(mo.solve(flow, start, until=near, **tolerance)))
        rows.append(_row(mo.solve(flow, start, until=far, **tolerance)))
        peer = mo.solve(
            flow, start, until=near, method="dopri5", max_steps=setting.budget, **tolerance
        )
        rows.append(_row(peer))
    return ResultTable(f"Two-layer problem at rtol {setting.rtol:g}", COLUMNS, tuple(rows))


def _row(run: mo.Trajectory | list[mo.Trajectory]) -> tuple[str, ...]:
    assert isinstance(run, mo.Trajectory)
    loss, stats = run.log_inverse_loss, run.stats
    gained = float(loss[-1] - loss[0])
    return (
        label(run.flow.potential), run.method, run.status.name, f"{float(loss[-1]):.5g}",
        str(stats.steps), str(stats.evaluations), str(stats.slides), f"{stats.wall_seconds:.1f}",
        f"{stats.evaluations / gained:.3g}",
    )  # fmt: skip


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

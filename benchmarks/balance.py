"""What `solve(correct_balance=True)` costs: processor time with and without it, side by side.

The paper's two-layer problem and its three-layer one, from the initial point to log(1/𝓛) = 115 with
every step saved, for each potential: once with and once without the correction, in turn and in one
process; the ratio is that of the shortest times. The integration is the same to the last bit, so
that what differs by more than the correction alone, which is timed as well, is noise. Drifts are
relative to the sum of the terms of a law.

    python benchmarks/balance.py
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table

import mirrorode as mo
from mirrorode.experiment.figures import label
from mirrorode.experiment.scenario import ResultTable
from mirrorode.flow import balance
from mirrorode.theory.balance import unit_laws

PAPER_LOSS = 115.0
WIDTHS = ((2, 100, 1), (2, 100, 100, 1))
POTENTIALS = (mo.HyperbolicEntropy(0.1), mo.Euclidean(), mo.SmoothedHomogeneous(3, 1.0))
COLUMNS = (
    "widths", "potential", "points", "iterations", "drift", "corrected", "time ratio",
    "correction alone",
)  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """What is compared."""

    rtol: float = 1e-5
    """Relative tolerance."""
    repeats: int = 3
    """Pairs of runs of the two-layer problem; of the three-layer one, which is long, one."""
    data_seed: int = 42
    """Seed of the samples and the teacher."""
    out: Path = Path("benchmarks/balance.md")
    """Where the table is written."""


def compare(setting: Benchmark) -> Iterator[tuple[str, ...]]:
    """Run every problem with and without the correction."""
    data = mo.teacher_student(seed=setting.data_seed)
    for widths in WIDTHS:
        network = mo.MLP(widths)
        for potential in POTENTIALS:
            flow = mo.MirrorFlow(network, data, potential)
            repeats = setting.repeats if len(widths) == 3 else 1
            yield _row(setting, flow, repeats)


def _row(setting: Benchmark, flow: mo.MirrorFlow, repeats: int) -> tuple[str, ...]:
    _solve(setting, flow, loss=-1.0, correct=True)  # what only the first call costs
    seconds: dict[bool, list[float]] = {True: [], False: []}
    runs: dict[bool, mo.Trajectory] = {}
    for _ in range(repeats):
        for correct, spent in seconds.items():
            begun = time.process_time()
            runs[correct] = _solve(setting, flow, PAPER_LOSS, correct)
            spent.append(time.process_time() - begun)
    begun = time.process_time()
    balance.corrected(flow, runs[False].theta)
    alone = time.process_time() - begun
    run, without = runs[True], min(seconds[False])
    assert run.drift is not None
    return (
        ", ".join(map(str, flow.network.widths)) if isinstance(flow.network, mo.MLP) else "",
        label(flow.potential), str(len(run.theta)), str(run.stats.balance_iterations),
        f"{float(run.drift.max()):.1e}", f"{float(unit_laws(flow, run.theta).drift()):.1e}",
        f"{min(seconds[True]) / without:.3f}", f"{100 * alone / without:.2g} %",
    )  # fmt: skip


def _solve(setting: Benchmark, flow: mo.MirrorFlow, loss: float, correct: bool) -> mo.Trajectory:
    found = mo.solve(
        flow, flow.network.initial(0), until=mo.LogInverseLoss(loss), rtol=setting.rtol,
        atol=0.01 * setting.rtol, correct_balance=correct,
    )  # fmt: skip
    assert isinstance(found, mo.Trajectory)
    return found


def main() -> None:
    """Print the table and write it as Markdown."""
    setting = tyro.cli(Benchmark)
    torch.set_num_threads(1)
    console, rows = Console(), []
    with console.status("integrating") as progress:
        for row in compare(setting):
            rows.append(row)
            progress.update(" ".join(row))
    title = f"Correcting the balance of every step to log(1/loss) = {PAPER_LOSS:g}"
    found = ResultTable(title, COLUMNS, tuple(rows))
    table = Table(*found.columns, title=found.title)
    for row in found.rows:
        table.add_row(*row)
    console.print(table)
    setting.out.write_text(found.to_markdown(), encoding="utf-8")


if __name__ == "__main__":
    main()

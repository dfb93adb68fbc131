"""Where the time of a run goes: evaluations, linear algebra, and what is left, the overhead.

An evaluation is the network, its gradients and normals, and, of two layers, the neurons followed
through a step. Each call is timed without what it calls of another kind. Shares of one run each, in
one process, so that they compare; and the memory of a three-layer run on many samples.

    python benchmarks/overhead.py
"""

from __future__ import annotations

import functools
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console

import mirrorode as mo
from mirrorode.experiment.figures import label
from mirrorode.experiment.scenario import ResultTable
from mirrorode.flow import normals, step, system, waveform
from mirrorode.flow.subflow import Convoy
from mirrorode.problem.networks import MLP

POTENTIALS = (mo.HyperbolicEntropy(0.1), mo.Euclidean(), mo.SmoothedHomogeneous(3, 1.0))
COLUMNS = ("layers", "potential", "to log(1/loss)", "evaluations", "linear algebra", "overhead")
EVALUATIONS: tuple[tuple[Any, str], ...] = (
    *((MLP, name) for name in
      ("forward", "backward", "pull", "normals", "normal_factors", "rates", "output")),
    (waveform.Problem, "margins"), (waveform.Problem, "rows"), (Convoy, "arrive"),
)  # fmt: skip
ALGEBRA: tuple[tuple[Any, str], ...] = (
    (waveform.Newton, "matrix"), (waveform.Newton, "solve"), (torch.linalg, "lu_factor_ex"),
    (torch.linalg, "lu_solve"), (torch.linalg, "solve_ex"), (torch.linalg, "pinv"),
    (system.System, "factorise"), (system.System, "update"), (step.Step, "project"),
    (normals.Normals, "gram"), (step, "solve_gram"),
)  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    rtol: float = 1e-5
    """Relative tolerance."""
    loss: float = 115.0
    """log(1/loss) to go to."""
    samples: int = 1000
    """Of the three-layer run whose memory is measured."""
    out: Path = Path("benchmarks/overhead.md")
    """Where the table is written."""
    memory_of: int = 0
    """Only integrate three layers on so many samples, and print the peak memory."""
    keep: bool = False
    """Keep every step of that."""


@dataclass
class Clock:
    """Seconds of each kind, each second once."""

    kinds: list[str] = field(default_factory=lambda: ["overhead"])
    spent: dict[str, float] = field(default_factory=dict)
    since: float = 0.0

    def turn(self) -> None:
        """Write down what has passed since the last change of kind."""
        now = time.perf_counter()
        self.spent[self.kinds[-1]] = self.spent.get(self.kinds[-1], 0.0) + now - self.since
        self.since = now

    def watch(self, owner: Any, name: str, kind: str) -> None:
        """Count the calls of a function as of a kind."""
        function: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **more: Any) -> Any:
            self.turn()
            self.kinds.append(kind)
            try:
                return function(*args, **more)
            finally:
                self.turn()
                self.kinds.pop()

        setattr(owner, name, timed)


def shares(setting: Benchmark) -> ResultTable:
    """Of a run of each kind."""
    clock, rows = Clock(), []
    for functions, kind in ((EVALUATIONS, "evaluations"), (ALGEBRA, "linear algebra")):
        for owner, name in functions:
            clock.watch(owner, name, kind)
    for widths in ((2, 100, 1), (2, 100, 100, 1)):
        for potential in POTENTIALS:
            flow = mo.MirrorFlow(mo.MLP(widths), mo.teacher_student(), potential)
            clock.spent, clock.since = {}, time.perf_counter()
            run = _solve(flow, setting)
            clock.turn()
            total = sum(clock.spent.values())
            parts = (f"{100 * clock.spent[kind] / total:.0f} %" for kind in COLUMNS[3:])
            loss = f"{float(run.log_inverse_loss[-1]):.3g}"
            rows.append((str(len(widths) - 1), label(potential), loss, *parts))
    return ResultTable("Shares of the time of a run", COLUMNS, tuple(rows))


def _solve(flow: mo.MirrorFlow, setting: Benchmark, *, keep: bool = True) -> mo.Trajectory:
    found = mo.solve(
        flow, flow.network.initial(0), until=mo.LogInverseLoss(setting.loss), rtol=setting.rtol,
        atol=0.01 * setting.rtol, correct_balance=False, saveat=None if keep else [],
    )  # fmt: skip
    assert isinstance(found, mo.Trajectory)
    return found


def _memory(setting: Benchmark, keep: str) -> str:
    """The peak of a process of its own."""
    flags = (f"--memory-of={setting.samples}", f"--rtol={setting.rtol}", "--loss=20", keep)
    done = subprocess.run([sys.executable, __file__, *flags], capture_output=True, check=True)
    return done.stdout.decode().strip()


def main() -> None:
    """Print the shares and the memory, and write them as Markdown."""
    setting = tyro.cli(Benchmark)
    torch.set_num_threads(1)
    if setting.memory_of:
        data = mo.teacher_student(setting.memory_of)
        flow = mo.MirrorFlow(mo.MLP((2, 100, 100, 1)), data, mo.Euclidean())
        run = _solve(flow, setting, keep=setting.keep)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{peak:.2f} GB, {run.stats.steps} steps, {run.status.name}")
        return
    table = shares(setting).to_markdown()
    ends, every = (_memory(setting, flag) for flag in ("--no-keep", "--keep"))
    note = (
        f"Peak memory, three layers, {setting.samples} samples, gradient flow to log(1/loss) = 20: "
        f"{ends} with `saveat=[]`; {every} with every step kept."
    )
    Console().print(table, note, sep="\n")
    setting.out.write_text(f"{table}\n{note}\n", encoding="utf-8")


if __name__ == "__main__":
    main()

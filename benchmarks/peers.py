"""What the integrator costs beside other solvers, and how its cost grows with the problem.

First the paper's two-layer problem under gradient flow, from the initial point to the log t at
which 𝓛 is 1e-10, 1e-50 and 1e-400, one method after the other in one process. Peers get the same
right-hand side, dz/dσ in log time σ, in which the flow has a length of log t and no method
overflows; log(1/𝓛) as a clock is shorter, but explicit steps leave the flow there unnoticed. The
error is that of the direction θ/‖θ‖ against ``auto`` at a hundredth of the tolerance. A peer has a
budget of seconds; what it reached by then gives a lower bound of what it costs.

Then ``auto`` alone: steps a decade of log(1/𝓛) for every potential; work against width, samples,
depth and the number of starts, with the exponent that fits.

    python benchmarks/peers.py
"""

from __future__ import annotations

import importlib.util
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torchdiffeq
import tyro
from rich.console import Console
from rich.table import Table
from scipy.integrate import solve_ivp
from torch import Tensor

import mirrorode as mo
from mirrorode.experiment.figures import label
from mirrorode.experiment.scenario import ResultTable
from mirrorode.flow.baseline import LogTimeField
from mirrorode.flow.trajectory import Stats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
STYLE = ROOT / "mirrorode/experiment/paper.mplstyle"
LOSSES = {"1e-10": 10 * math.log(10), "1e-50": 50 * math.log(10), "1e-400": 400 * math.log(10)}
POTENTIALS = (
    mo.HyperbolicEntropy(0.1), mo.HyperbolicEntropy(1.0), mo.Euclidean(),
    mo.SmoothedHomogeneous(3, 1.0), mo.SmoothedHomogeneous(3, 10.0),
)  # fmt: skip
DECADES = (1e3, 1e9)
PATIENT = "torchdiffeq dopri5"
CORES = os.cpu_count() or 1
COLUMNS = (
    "to loss", "method", "arrived", "evaluations", "evals, by ours", "time, by ours", "error",
    "how it ended",
)  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """What is compared."""

    seconds: float = 60.0
    """Of one peer on one stretch."""
    patience: float = 600.0
    """Seconds for torchdiffeq dopri5, of which the whole cost is to be known."""
    rtol: float = 1e-5
    """Relative tolerance of all methods."""
    widths: tuple[int, ...] = (10, 30, 100, 300, 1000, 3000)
    samples: tuple[int, ...] = (10, 30, 100, 300)
    depths: tuple[int, ...] = (2, 3, 4, 6, 8)
    starts: tuple[int, ...] = (1, 4, 16, 64)
    out: Path = ROOT / "benchmarks/peers.md"
    """Where the tables are written."""
    figure: Path = ROOT / "figures/peers"
    """Where the figure is written, with .pdf, .png and .csv appended."""


class Spent(Exception):
    """The budget of a peer is spent."""


@dataclass
class Problem:
    """The flow in log time, for any solver: counts evaluations, remembers where it got to.

    The state of `LogTimeField` carries ∫‖G‖²_D dσ behind the dual.
    """

    flow: mo.MirrorFlow
    start: Tensor
    seconds: float
    begun: float = 0.0
    evaluations: int = 0
    furthest: float = 0.0
    clock: LogTimeField = field(init=False)

    def __post_init__(self) -> None:
        self.clock = LogTimeField(self.flow, self.start, Stats(), 10**12)
        self.begun = time.perf_counter()

    def __call__(self, sigma: Tensor, state: Tensor) -> Tensor:
        """dz/dσ at one state (n + 1,).

        Raises:
            Spent: after ``seconds``.
        """
        if time.perf_counter() - self.begun > self.seconds:
            raise Spent
        self.evaluations += 1
        self.furthest = max(self.furthest, float(sigma))
        return self.clock(sigma, state)

    @property
    def state(self) -> Tensor:
        """That at σ = 0."""
        return self.clock.last[1]


Method = Callable[[Problem, float, float], Tensor]


def _torchdiffeq(method: str, problem: Problem, end: float, rtol: float) -> Tensor:
    times = torch.tensor([0.0, end], dtype=torch.float64)
    found = torchdiffeq.odeint(
        problem, problem.state, times, rtol=rtol, atol=0.01 * rtol, method=method
    )
    return found[-1]


def _scipy(method: str, problem: Problem, end: float, rtol: float) -> Tensor:
    def slope(sigma: float, state: Any) -> Any:
        return problem(torch.tensor(sigma), torch.from_numpy(state)).numpy()

    start = problem.state.numpy()
    found = solve_ivp(slope, (0.0, end), start, method=method, rtol=rtol, atol=0.01 * rtol)
    if not found.success:
        raise RuntimeError(found.message)
    return torch.from_numpy(found.y[:, -1])


def _torchode(problem: Problem, end: float, rtol: float) -> Tensor:
    import torchode

    def slope(sigma: Tensor, state: Tensor) -> Tensor:
        return problem(sigma[0], state[0])[None]

    term = torchode.ODETerm(slope)
    method = torchode.Tsit5(term=term)
    control = torchode.IntegralController(atol=0.01 * rtol, rtol=rtol, term=term)
    times = torch.tensor([[0.0, end]], dtype=torch.float64)
    solver = torchode.AutoDiffAdjoint(method, control)
    found = solver.solve(torchode.InitialValueProblem(y0=problem.state[None], t_eval=times))
    return found.ys[0, -1]


def _diffrax(problem: Problem, end: float, rtol: float) -> Tensor:
    import diffrax
    import jax

    jax.config.update("jax_enable_x64", True)

    def host(sigma: Any, state: Any) -> Any:
        return problem(torch.tensor(float(sigma)), torch.tensor(np.array(state))).numpy()

    def slope(sigma: Any, state: Any, _: Any) -> Any:
        return jax.pure_callback(host, jax.ShapeDtypeStruct(state.shape, state.dtype), sigma, state)

    control = diffrax.PIDController(rtol=rtol, atol=0.01 * rtol)
    found = diffrax.diffeqsolve(
        diffrax.ODETerm(slope), diffrax.Tsit5(), 0.0, end, None, problem.state.numpy(),
        stepsize_controller=control, max_steps=None, saveat=diffrax.SaveAt(t1=True),
        adjoint=diffrax.DirectAdjoint(),
    )  # fmt: skip
    return torch.tensor(np.array(found.ys[-1]))


def peers() -> dict[str, Method]:
    """Those that are installed."""
    found: dict[str, Method] = {f"torchdiffeq {it}": partial(_torchdiffeq, it) for it in
                                ("dopri5", "dopri8")}  # fmt: skip
    found |= {f"SciPy {it}": partial(_scipy, it) for it in ("LSODA", "BDF", "Radau")}
    if importlib.util.find_spec("torchode"):
        found["torchode Tsit5"] = _torchode
    if importlib.util.find_spec("diffrax"):
        found["diffrax Tsit5"] = _diffrax
    return found


def against_peers(setting: Benchmark) -> Iterator[dict[str, Any]]:
    """Every method to every loss; a peer that fails on the way is not asked to go further."""
    network = mo.MLP((2, 100, 1))
    flow = mo.MirrorFlow(network, mo.teacher_student(), mo.Euclidean())
    start, lost = network.initial(0), set()
    exact = _own(flow, start, max(LOSSES.values()), 0.01 * setting.rtol)
    for name, loss in LOSSES.items():
        ours = _own(flow, start, loss, setting.rtol)
        log_time = float(ours.log_time[-1])
        reference = exact.at(log_time=log_time)
        yield {
            "loss": name, "method": "auto", "share": 1.0, "evaluations": ours.stats.evaluations,
            "seconds": ours.stats.wall_seconds, "evals": 1.0, "time": 1.0,
            "error": _apart(ours.theta[-1], reference), "end": f"{ours.stats.steps} steps",
        }  # fmt: skip
        for peer, method in peers().items():
            if peer in lost:
                continue
            seconds = setting.patience if peer == PATIENT else setting.seconds
            found = _peer(setting.rtol, seconds, flow, start, log_time, method, reference)
            found["evals"] = found["evaluations"] / ours.stats.evaluations
            found["time"] = found["seconds"] / ours.stats.wall_seconds
            if found["share"] < 1:
                lost.add(peer)
            yield {"loss": name, "method": peer, **found}


def _own(flow: mo.MirrorFlow, start: Tensor, loss: float, rtol: float, **more: Any) -> Any:
    until = mo.LogInverseLoss(loss)
    return mo.solve(flow, start, until=until, rtol=rtol, atol=0.01 * rtol, **more)


def _peer(
    rtol: float, seconds: float, flow: mo.MirrorFlow, start: Tensor, log_time: float,
    method: Method, reference: Tensor,
) -> dict[str, Any]:  # fmt: skip
    problem, error, how = Problem(flow, start, seconds), math.nan, "arrived"
    end = problem.clock.sigma(log_time)
    try:
        state = method(problem, end, rtol)
        error = _apart(flow.potential.inverse_gradient(state[:-1]), reference)
    except Exception as failure:  # whatever a peer raises is how it ended
        spent = time.perf_counter() - problem.begun > seconds
        reason = f"{seconds:g} s spent" if spent else str(failure).splitlines()[0][:60]
        how = f"{reason}; at log t = {problem.clock.log_time(problem.furthest):.4g}"
    share = 1.0 if how == "arrived" else problem.furthest / end
    return {
        "share": share, "evaluations": problem.evaluations,
        "seconds": time.perf_counter() - problem.begun, "error": error, "end": how,
    }  # fmt: skip


def _apart(theta: Tensor, reference: Tensor) -> float:
    return float((theta / theta.norm() - reference / reference.norm()).norm())


def peer_table(rows: list[dict[str, Any]]) -> ResultTable:
    """What every method needed; of one that did not arrive, up to where it came."""
    cells = []
    for row in rows:
        sign = "" if row["share"] == 1 else "> "
        error = "" if math.isnan(row["error"]) else f"{row['error']:.1e}"
        cells.append((
            row["loss"], row["method"], f"{100 * row['share']:.3g} %", str(row["evaluations"]),
            f"{sign}{row['evals']:.3g}", f"{sign}{row['time']:.3g}", error, row["end"],
        ))  # fmt: skip
    return ResultTable("Two-layer problem, gradient flow, beside peers", COLUMNS, tuple(cells))


def decades(setting: Benchmark) -> ResultTable:
    """Steps from log(1/𝓛) = 1e3 to 1e9, a decade, for each potential."""
    data, network, rows = mo.teacher_student(), mo.MLP((2, 100, 1)), []
    for potential in POTENTIALS:
        flow = mo.MirrorFlow(network, data, potential)
        run = _own(flow, network.initial(0), DECADES[1], setting.rtol)
        edges = torch.logspace(3, 9, 7, dtype=torch.float64)
        counts = [int(((run.log_inverse_loss > low) & (run.log_inverse_loss <= high)).sum())
                  for low, high in pairwise(edges)]  # fmt: skip
        mean = sum(counts) / len(counts)
        rows.append((label(potential), *map(str, counts), f"{mean:.3g}"))
    columns = ("potential", *(f"1e{k} to 1e{k + 1}" for k in range(3, 9)), "mean")
    return ResultTable("Steps a decade of log(1/loss)", columns, tuple(rows))


def growth(setting: Benchmark) -> Iterator[dict[str, Any]]:
    """Work to 𝓛 = 1e-10 against each size, the others those of the paper's problem."""
    sizes = {
        "width": setting.widths, "samples": setting.samples, "depth": setting.depths,
        "starts": setting.starts,
    }  # fmt: skip
    for kind, values in sizes.items():
        for value in values:
            width = value if kind == "width" else 20 if kind == "depth" else 100
            depth = value if kind == "depth" else 2
            network = mo.MLP((2, *[width] * (depth - 1), 1))
            data = mo.teacher_student(value if kind == "samples" else 200)
            flow = mo.MirrorFlow(network, data, mo.Euclidean())
            starts = [network.initial(k) for k in range(value if kind == "starts" else 1)]
            start = torch.stack(starts) if kind == "starts" else starts[0]
            torch.set_num_threads(CORES if kind == "starts" else 1)
            begun = time.perf_counter()
            found = _own(flow, start, LOSSES["1e-10"], setting.rtol, max_steps=20_000)
            spent = time.perf_counter() - begun
            runs = found if isinstance(found, list) else [found]
            yield {
                "kind": kind, "size": value, "steps": sum(it.stats.steps for it in runs),
                "evaluations": sum(it.stats.evaluations for it in runs), "seconds": spent,
                "status": runs[-1].status.name,
            }  # fmt: skip


def growth_table(rows: list[dict[str, Any]]) -> ResultTable:
    """Work, and the exponents of a power of the size that fit it."""
    cells = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        first = own[0]
        for row in own:
            ratio = row["seconds"] / first["seconds"]
            cells.append((
                kind, str(row["size"]), str(row["steps"]), str(row["evaluations"]), f"{ratio:.3g}",
                row["status"],
            ))  # fmt: skip
        size = np.log([row["size"] for row in own])
        powers = [np.polyfit(size, np.log([row[name] for row in own]), 1)[0]
                  for name in ("steps", "evaluations", "seconds")]  # fmt: skip
        cells.append((kind, "exponent", *(f"{it:.2f}" for it in powers), ""))
    columns = ("of", "size", "steps", "evaluations", "time, by the first", "status")
    return ResultTable("Work to a loss of 1e-10", columns, tuple(cells))


def draw(rows: list[dict[str, Any]], grown: list[dict[str, Any]]) -> Figure:
    """Evaluations of every method to every loss; work against each size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.9, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    shades = ("black", "#CC79A7", "#56B4E9", "#999999", "#E69F00", "#F0E442", "#882255", "#44AA99")
    for method, shade in zip(dict.fromkeys(row["method"] for row in rows), shades, strict=False):
        own = [row for row in rows if row["method"] == method]
        x, y = [LOSSES[row["loss"]] for row in own], [row["evaluations"] for row in own]
        left.plot(x, y, "-", color=shade, lw=1, label=method)
        for at, count, row in zip(x, y, own, strict=True):
            fill = shade if row["share"] == 1 else "white"
            left.plot(at, count, "o" if row["share"] == 1 else "^", color=shade, mfc=fill, ms=4)
    left.set(
        xscale="log", yscale="log", xlabel=r"$\log(1/\mathcal{L})$ to be reached",
        ylabel="evaluations (hollow: budget spent)",
    )  # fmt: skip
    for kind, marker in zip(dict.fromkeys(row["kind"] for row in grown), "osv^", strict=True):
        own = [row for row in grown if row["kind"] == kind]
        x = [row["size"] / own[0]["size"] for row in own]
        y = [row["seconds"] / own[0]["seconds"] for row in own]
        name = f"{kind}, {own[0]['size']} to {own[-1]['size']}"
        right.plot(x, y, marker=marker, ms=4, lw=1, label=name, color="black" if kind == "width"
                   else shades["osv^".index(marker)])  # fmt: skip
    right.set(xscale="log", yscale="log", xlabel="size, by the first", ylabel="time, by the first")
    for axis in (left, right):
        axis.legend(fontsize=5.5)
        axis.grid(color="0.92", lw=0.5)
    return figure


def main() -> None:
    """Print the tables, write them as Markdown, and draw the figure."""
    import matplotlib as mpl

    setting = tyro.cli(Benchmark)
    torch.set_num_threads(1)
    console = Console()
    rows: list[dict[str, Any]] = []
    for row in against_peers(setting):
        console.print(f"{row['loss']} {row['method']}: {row['evaluations']}, {row['end']}")
        rows.append(row)
    grown = list(growth(setting))
    tables = (peer_table(rows), decades(setting), growth_table(grown))
    for found in tables:
        table = Table(*found.columns, title=found.title)
        for cells in found.rows:
            table.add_row(*cells)
        console.print(table)
    text = "\n".join(found.to_markdown() for found in tables)
    setting.out.write_text(text, encoding="utf-8")
    plotted = "\n".join(found.to_csv() for found in (tables[0], tables[2]))
    setting.figure.with_suffix(".csv").write_text(plotted, encoding="utf-8")
    with mpl.rc_context(fname=str(STYLE)):
        figure = draw(rows, grown)
        figure.savefig(setting.figure.with_suffix(".pdf"), metadata={"CreationDate": None})
        figure.savefig(setting.figure.with_suffix(".png"))


if __name__ == "__main__":
    main()

"""What an integration returns: saved points, dense output, events, statistics and a status."""

from __future__ import annotations

import bisect
import io
import json
import math
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mirrorode.flow import balance
from mirrorode.flow.dense import DenseStep
from mirrorode.flow.description import describe, describe_network, rebuild, rebuild_network
from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.observe import Observed
from mirrorode.problem.arrays import DAMAGE, read_arrays
from mirrorode.problem.datasets import Dataset
from mirrorode.problem.errors import InputError, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Status(Enum):
    """How an integration ended; the text is advice."""

    REACHED = "the stopping rule was reached"
    MAX_STEPS = "max_steps were taken before the stopping rule: raise max_steps"
    BLOCKED = (
        "no further progress: probably a unit slides along kinks, or is held at zero, in a way "
        "that the integrator does not follow; what was reached is kept"
    )
    STATIONARY = (
        "nothing that carries the loss moves: a saddle, such as the origin, or samples for which "
        "every unit is off, so that the loss cannot fall below one for each: start elsewhere"
    )
    DEAD = (
        "a whole layer is off for all samples, so that the network is zero and stays so: start "
        "elsewhere"
    )
    STAGNANT = (
        "the loss has stopped falling: a minimum, or samples that the network cannot separate; "
        "where it is above one the statements about late times have not begun"
    )
    OVERFLOW = (
        "weights or their duals have outgrown double precision: ask for a smaller log(1/loss), or "
        "start smaller"
    )
    NON_FINITE = (
        "a number was no longer finite: try a smaller rtol or smaller data, and, if the potential "
        "is your own, see whether it gives NaN"
    )
    SOLVER_FAILED = 'the baseline solver gave up: try method="auto"'


@dataclass
class Stats:
    """Counts of one integration.

    Attributes:
        steps: accepted; rejected: attempts repeated with a smaller step.
        half_passes: passes over all samples and parameters, up (margins) or down (gradient); a
            pass over only the samples that matter counts in full.
        events: at kinks; slides: those of them that began to slide.
        through_kinks: accepted steps that did not look for kinks, and went through them.
        balance_iterations: of Newton's method that put the saved points back on their balance
            manifold, each of a few hundred points at once.
        balance_left: units at saved points that nothing can put back, as all paths of nonzero
            weights through them are gone (`flow.balance.restore` tells why).
        wall_seconds: of the integration.
    """

    steps: int = 0
    rejected: int = 0
    half_passes: int = 0
    events: int = 0
    slides: int = 0
    through_kinks: int = 0
    balance_iterations: int = 0
    balance_left: int = 0
    wall_seconds: float = 0.0

    @property
    def evaluations(self) -> int:
        """Evaluations of margins *and* gradient."""
        return (self.half_passes + 1) // 2


@dataclass(frozen=True)
class Event:
    """One event at a kink, or at w = 0.

    Attributes:
        kind: "cross", "slide", "exit", "capture", "release", or "branch" where a kink turns from
            attracting to repelling and the off side was chosen of the possible continuations.
        log_time, log_inverse_loss: where it happened.
        layer, unit: the hidden unit, layers from 0.
        sample: the sample; −1 where the unit concerns all of them.
        coefficient: ξ, the share of its on side that the pair takes from then on: 0 or 1 off or on
            the kink, between them while it slides; NaN where it has no meaning.
    """

    kind: str
    log_time: float
    log_inverse_loss: float
    layer: int
    unit: int
    sample: int
    coefficient: float = math.nan

    @property
    def time(self) -> float:
        """t; inf where it overflows."""
        return math.exp(self.log_time) if self.log_time < 709.0 else math.inf


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One integrated mirror flow.

    Attributes:
        flow: what was integrated.
        log_time, log_inverse_loss: log t and log(1/𝓛) at the saved points, (T,).
        theta, dual: primal and dual variable at the saved points, (T, n).
        steps: dense output, one piece an accepted step; empty for a baseline method, and where
            kinks were stepped through and only `saveat` was to be kept.
        events: at kinks, in order.
        stats: counts.
        status: how it ended; its value is advice.
        message: one sentence about the end.
        method, rtol: how it was integrated.
        dissipated: ∫‖dθ/dt‖²_A dt up to the saved points, as a change of log(1/𝓛), (T,).
        drift: what the integrator did to the balance equation: the change of each law since the
            start, relative to the sum of its terms, (T, laws), those of units before those of
            layers, as in `invariants`; None if no laws are known.
        balanced: whether that drift has been taken out of θ and the dual.
        observed: what functions in `saveat` have given, by name.
    """

    flow: MirrorFlow
    log_time: Tensor
    log_inverse_loss: Tensor
    theta: Tensor
    dual: Tensor
    steps: tuple[DenseStep, ...]
    events: tuple[Event, ...]
    stats: Stats
    status: Status
    message: str
    method: str
    rtol: float
    dissipated: Tensor
    drift: Tensor | None = None
    balanced: bool = False
    observed: Mapping[str, Observed] = field(default_factory=dict)

    @property
    def success(self) -> bool:
        """Whether the stopping rule was reached."""
        return self.status is Status.REACHED

    def __str__(self) -> str:
        kinds = [event.kind for event in self.events]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        stats = self.stats
        events = f"{stats.events} ({counts or 'none'})"
        if stats.through_kinks:
            events = f"not located: kinks were stepped through in {stats.through_kinks} steps"
        return (
            f"Trajectory of {self.flow.potential} by method={self.method!r}\n"
            f"  status       {self.status.name}: {self.message}\n"
            f"  reached      log t = {float(self.log_time[-1]):.8g}, "
            f"log(1/loss) = {float(self.log_inverse_loss[-1]):.8g}\n"
            f"  work         {stats.steps} steps, {stats.rejected} rejected, "
            f"{stats.evaluations} evaluations, {stats.wall_seconds:.1f} s\n"
            f"  events       {events}\n"
            f"{self._balance()}"
            f"  saved        {len(self.log_time)} points"
            + "".join(f"\n  observed     {name}, {len(it)}" for name, it in self.observed.items())
        )

    __repr__ = __str__

    def _balance(self) -> str:
        if self.drift is None:
            return ""
        done = f"corrected in {self.stats.balance_iterations} iterations" * self.balanced
        if self.stats.balance_left:
            done += f", {self.stats.balance_left} units at saved points left alone"
        return f"  balance      drift {float(self.drift.max()):.1e}, {done or 'not corrected'}\n"

    def at(
        self,
        *,
        time: float | None = None,
        log_time: float | None = None,
        log_inverse_loss: float | None = None,
    ) -> Tensor:
        """θ (n,) by dense output at one time, log t or log(1/𝓛).

        Raises:
            InputError: unless exactly one is given, inside the trajectory, and there is dense
                output.
        """
        given = {"time": time, "log_time": log_time, "log_inverse_loss": log_inverse_loss}
        chosen = [(name, value) for name, value in given.items() if value is not None]
        if len(chosen) != 1:
            raise InputError(f"`at` takes one of {', '.join(given)}, but got {len(chosen)}")
        name, value = chosen[0]
        if not self.steps:
            raise InputError(
                "`at` needs the dense output that `solve` keeps by method='auto' without `saveat`, "
                f"but this trajectory of method={self.method!r} has none"
            )
        if name == "time":
            require(value >= 0, "time", "be zero or positive", value)
            value = math.log(value) if value > 0 else -math.inf
        by_time = name != "log_inverse_loss"
        starts = [step.log_time if by_time else float(step.loss[0]) for step in self.steps]
        last = self.steps[-1]
        end = last.log_time_at(1.0) if by_time else float(last.log_inverse_loss(1.0))
        slack = 1e-9 * max(1.0, abs(end))
        must = f"be between {starts[0]:.6g} and {end:.6g} (as a logarithm)"
        require(starts[0] - slack <= value <= end + slack, name, must, value)
        step = self.steps[max(0, bisect.bisect_right(starts, value) - 1)]
        s = step.locate(value, by_time=by_time)
        theta = self.flow.potential.inverse_gradient(step.dual(s))
        if not self.balanced or self.drift is None:
            return theta
        return balance.corrected(self.flow, torch.stack([self.theta[0], theta])).theta[1]

    def plot(self) -> Figure:
        """log t and the relative L₁-, L₂- and L₃-margins against log(1/𝓛)."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3), layout="constrained")
        left, right = figure.subplots(1, 2)
        loss, log_time = self.log_inverse_loss.cpu(), self.log_time.cpu()
        left.plot(loss, log_time)
        left.set(xlabel=r"$\log(1/\mathcal{L})$", ylabel=r"$\log t$")
        q_min = self.flow.margins(self.theta).amin(-1)
        for k in (1, 2, 3):
            size = torch.linalg.vector_norm(self.theta, ord=k, dim=-1)
            right.plot(loss, (q_min / size**self.flow.network.degree).cpu(), label=f"$L_{k}$")
        right.set(xlabel=r"$\log(1/\mathcal{L})$", ylabel="margin")
        right.legend()
        for axes in (left, right):
            axes.set_xscale("symlog", linthresh=10)
        return figure

    def save(self, path: str | Path) -> None:
        """Write everything, dense output included, to one ``.npz`` file, atomically."""
        head = {
            "status": self.status.name,
            "message": self.message,
            "method": self.method,
            "rtol": self.rtol,
            "stats": asdict(self.stats),
            "balanced": self.balanced,
            "observed": list(self.observed),
            "events": [list(asdict(event).values()) for event in self.events],
            "network": describe_network(self.flow.network),
            "potential": describe(self.flow.potential),
        }
        names = ("log_time", "log_inverse_loss", "theta", "dual", "dissipated")
        arrays = {name: getattr(self, name).cpu().numpy() for name in names}
        if self.drift is not None:
            arrays["drift"] = self.drift.cpu().numpy()
        for number, one in enumerate(self.observed.values()):
            for part in fields(Observed):
                array = getattr(one, part.name).cpu().numpy()
                arrays[f"observed_{number}_{part.name}"] = array
        data = self.flow.dataset
        arrays |= {"x": data.x.cpu().numpy(), "y": data.y.cpu().numpy()}
        if data.teacher is not None:
            arrays["teacher"] = data.teacher.cpu().numpy()
        if self.steps:
            arrays["step_duals"] = torch.stack([step.duals for step in self.steps]).cpu().numpy()
            for name in ("h", "log_time", "loss", "log_rate", "prescribed", "dissipated"):
                arrays[f"step_{name}"] = np.array([getattr(step, name) for step in self.steps])
        buffer = io.BytesIO()
        np.savez(buffer, head=np.array(json.dumps(head)), **arrays)
        try:
            write_atomically(Path(path), buffer.getvalue())
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"`path` must be a file to write, but is {path} ({reason})") from None

    @classmethod
    def load(cls, path: str | Path, flow: MirrorFlow | None = None) -> Trajectory:
        """Read a trajectory; ``flow`` is needed where its network or potential is one's own.

        Raises:
            InputError: if there is no such file, it is damaged, or ``flow`` is needed.
        """
        require(Path(path).is_file(), "path", "be a stored trajectory", str(path))
        try:
            arrays = read_arrays(path)
            return cls._of(arrays, json.loads(str(arrays.pop("head"))), flow)
        except InputError:
            raise
        except DAMAGE:
            sentence = f"`path` must be a stored trajectory, but {path} cannot be read as one"
            raise InputError(sentence) from None

    @classmethod
    def _of(
        cls, arrays: dict[str, Any], head: dict[str, Any], flow: MirrorFlow | None
    ) -> Trajectory:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        points = len(tensors["log_time"])
        if flow is None:
            data = Dataset(tensors["x"], tensors["y"], tensors.get("teacher"))
            network = rebuild_network(head["network"])
            flow = MirrorFlow(network, data, rebuild(head["potential"]))
        state = (points, flow.network.size)
        for name in ("log_time", "log_inverse_loss", "dissipated", "theta", "dual"):
            expected = state if name in ("theta", "dual") else state[:1]
            if points == 0 or tuple(tensors[name].shape) != expected:
                raise ValueError(f"{name} is not of shape {expected}")
        steps = tuple(
            DenseStep(duals, float(h), float(log_time), loss, rate, bool(prescribed), float(lost))
            for duals, h, log_time, loss, rate, prescribed, lost in zip(
                tensors.get("step_duals", ()),
                *(arrays.get(f"step_{f.name}", ()) for f in fields(DenseStep)[1:]),
                strict=True,
            )
        )
        parts = [it.name for it in fields(Observed)]
        observed = {
            name: Observed(*(tensors[f"observed_{number}_{part}"] for part in parts))
            for number, name in enumerate(head.get("observed", ()))
        }
        return cls(
            flow, tensors["log_time"], tensors["log_inverse_loss"], tensors["theta"],
            tensors["dual"], steps, tuple(_event(*event) for event in head["events"]),
            Stats(**head["stats"]), Status[head["status"]], head["message"], head["method"],
            head["rtol"], tensors["dissipated"], tensors.get("drift"), head.get("balanced", False),
            observed,
        )  # fmt: skip


def _event(*values: Any) -> Event:
    """An event as stored; its NaN is made the one of `math`, with which it compares equal."""
    event = Event(*values)
    return replace(event, coefficient=math.nan) if math.isnan(event.coefficient) else event


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, whatever fails.

    Two writers of one file do not disturb each other: the last one wins.
    """
    # Hosts that share a file system may have processes of one number.
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)

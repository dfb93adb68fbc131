"""The integration of one flow, as what scenarios are made of."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mirrorode.experiment.scenario import Job, Show
from mirrorode.flow.description import describe
from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.solve import solve
from mirrorode.flow.stopping import LogInverseLoss, StoppingRule
from mirrorode.flow.trajectory import Stats, Trajectory
from mirrorode.problem.modules import Network
from mirrorode.theory.margins import norm_margin
from mirrorode.theory.verify import verify

MARGINS = (1, 2, 3, math.inf)


@dataclass(frozen=True)
class Integration(Job):
    """One trajectory of a scenario.

    Attributes:
        name, study: as of any job.
        flow, theta0, until, rtol: as for `solve`.
        saveat: what of it is stored; everything, with its dense output, if None.
    """

    name: str
    flow: MirrorFlow
    theta0: Tensor
    until: StoppingRule
    saveat: Sequence[StoppingRule] | None
    rtol: float
    study: str = ""

    def identity(self) -> dict[str, Any]:
        """Network with its constants, potential, samples, start and tolerance."""
        data = self.flow.dataset
        tensors = [data.x, data.y, self.theta0]
        if isinstance(self.flow.network, Network):
            module = self.flow.network.module
            tensors += [it for it in module.parameters() if not it.requires_grad]
            tensors += module.buffers()
        content = hashlib.sha256(b"".join(it.detach().cpu().numpy().tobytes() for it in tensors))
        return {
            "network": repr(self.flow.network),
            "potential": describe(self.flow.potential),
            "samples and start": content.hexdigest(),
            "until": repr(self.until),
            "saveat": None if self.saveat is None else [repr(rule) for rule in self.saveat],
            "rtol": self.rtol,
        }

    def modules(self) -> set[str]:
        """Those in which network and potential are defined, and this one."""
        kinds: set[type] = {type(self.flow.network), type(self.flow.potential)}
        if isinstance(self.flow.network, Network):
            kinds |= {type(part) for part in self.flow.network.module.modules()}
        return {kind.__module__ for kind in kinds} | {__name__}

    def compute(self, checkpoint: Path, show: Show) -> Trajectory:
        """Integrate, from the checkpoint if there is one."""
        start = float(self.flow.log_inverse_loss(self.theta0))

        def share(loss: float) -> float:
            # Early and late phase take about half of the time each; late, decades count.
            if not isinstance(self.until, LogInverseLoss):
                return 0.0
            early = min(1.0, (loss - start) / max(1.0, 2.0 - start))
            return 0.9 * early + (0.1 if loss >= self.until.v else 0.0)

        def tell(log_time: float, loss: float, stats: Stats) -> None:
            show(
                share(loss),
                f"log(1/loss) {loss:.5g}, log t {log_time:.5g}, {stats.steps} steps, "
                f"{stats.events} events",
            )

        found = solve(
            self.flow, self.theta0, until=self.until, saveat=self.saveat, rtol=self.rtol,
            atol=0.01 * self.rtol, checkpoint=checkpoint, progress=tell,
        )  # fmt: skip
        assert isinstance(found, Trajectory)
        return found

    def told(self, result: Trajectory) -> dict[str, Any]:
        """How it ended, where, at what cost, and the verdicts."""
        theta = result.theta[-1]
        return {
            "flow": {
                "network": repr(self.flow.network),
                "dataset": repr(self.flow.dataset),
                "potential": repr(self.flow.potential),
            },
            "until": repr(self.until),
            "rtol": self.rtol,
            "status": result.status.name,
            "message": result.message,
            "statistics": asdict(result.stats) | {"evaluations": result.stats.evaluations},
            "measured": {
                "log_time": float(result.log_time[-1]),
                "log_inverse_loss": float(result.log_inverse_loss[-1]),
                **{
                    f"L{k:g}": float(norm_margin(result.flow, theta, k))
                    for k in (1, 2, 3, math.inf)
                },
            },
            "verdicts": json.loads(verify(result).to_json()),
        }

    def load(self, path: Path) -> Trajectory:
        """Read it; its own flow serves where a file cannot hold one: a module is code."""
        return Trajectory.load(path, self.flow if isinstance(self.flow.network, Network) else None)

"""The vision experiments of the paper (Section 5, Appendix J.3): networks and their weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from mirrorode.experiment.figures import colour
from mirrorode.experiment.images import Images, cifar10, digits
from mirrorode.experiment.panels import short
from mirrorode.experiment.scenario import ResultTable, Scenario
from mirrorode.experiment.training import Trained, Training
from mirrorode.experiment.vgg import SMALL, VGG16, participation, weights
from mirrorode.flow.mirror_descent import width_of
from mirrorode.problem.errors import require_integer
from mirrorode.problem.geometries import for_width
from mirrorode.problem.potentials import (
    Euclidean,
    HyperbolicEntropy,
    SeparablePotential,
    SmoothedHomogeneous,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Runs = Mapping[str, Trained]

LAMBDAS = (1e-5, 0.01, 0.1, 1.0)
"""λ of the paper's sweep."""
RATES = (0.1, 0.2)
"""η of it."""
SMALL_HYPERBOLIC, SMALL_P10 = 1e-5, 0.1
"""λ whose networks are drawn; with a smaller one p = 10 hardly moves in as many epochs."""
LARGE_LAM = 1e6
"""λ beside which |√width θ|^8 of all weights is small, so that p = 10 is gradient descent."""
P = 10
BINS = 24


@dataclass(frozen=True)
class Mirror:
    """A potential, its step size and what it is called.

    Attributes:
        potential: before it is scaled to the width of a layer.
        lr: η.
        printed: whether it is scaled as the paper prints it.
    """

    potential: SeparablePotential
    lr: float = RATES[0]
    printed: bool = False

    @property
    def name(self) -> str:
        """That of its runs, but for the seed."""
        kind = KINDS[type(self.potential)]
        lam = getattr(self.potential, "lam", None)
        parts = [kind, *([f"{lam:g}"] if lam is not None else []), f"lr{self.lr:g}"]
        return "-".join([*parts, *(["printed"] if self.printed else [])])

    @property
    def label(self) -> str:
        """That of legends and tables."""
        lam = getattr(self.potential, "lam", None)
        name = LABELS[KINDS[type(self.potential)]]
        name += f", λ = {short(lam)}" if lam is not None else ""
        name += f", η = {self.lr:g}" if self.lr not in RATES else ""
        return name + " (as printed)" * self.printed


KINDS: dict[type, str] = {
    Euclidean: "gd", HyperbolicEntropy: "hyperbolic", SmoothedHomogeneous: "p10",
}  # fmt: skip
LABELS = {"gd": "gradient descent", "hyperbolic": "hyperbolic", "p10": "p = 10"}


def hyperbolic(lam: float, lr: float = RATES[0]) -> Mirror:
    """The hyperbolic entropy."""
    return Mirror(HyperbolicEntropy(lam), lr)


def homogeneous(lam: float, lr: float = RATES[0], *, printed: bool = False) -> Mirror:
    """The smoothed ‖·‖_10^10."""
    return Mirror(SmoothedHomogeneous(P, lam), lr, printed)


GD = Mirror(Euclidean())
DRAWN = (hyperbolic(SMALL_HYPERBOLIC), GD, homogeneous(SMALL_P10))
"""From sparse to dense."""


@dataclass(frozen=True)
class Vision(Scenario):
    """Networks trained by mirror descent; its subclasses say which."""

    data: str = ""
    """A folder with CIFAR-10's python version; scikit-learn's digits, by a small VGG, if empty."""
    seeds: int = 3
    """Seeds, from 0."""
    epochs: int = 0
    """Passes over the images; 100 of the digits and 1000 of CIFAR-10, as in the paper, if 0."""
    batch: int = 100
    """Images a step."""
    deterministic: bool = False
    """On a GPU: only algorithms that always give the same bits, in full precision."""

    def quick(self) -> Self:
        """One seed, a fifth of the epochs on the digits."""
        return replace(self, seeds=1, epochs=20)

    def mirrors(self) -> Sequence[Mirror]:
        """Which are trained."""
        return DRAWN

    def jobs(self, device: str) -> list[Training]:
        """A network for each mirror and seed."""
        require_integer(self.seeds, "seeds", 1, 1000)
        require_integer(self.epochs, "epochs", 0, 1_000_000)
        require_integer(self.batch, "batch", 1, 100_000)
        images = _images(self.data)
        small = images.name == "digits"
        return [
            Training(
                name=f"{mirror.name}-seed{seed}", images=images, vgg=SMALL if small else VGG16,
                potential=mirror.potential, lr=mirror.lr,
                epochs=self.epochs or (100 if small else 1000), batch=self.batch, seed=seed,
                device=device, printed=mirror.printed, deterministic=self.deterministic,
                study=f"vision-{images.name.lower()}",
            )
            for mirror in self.mirrors()
            for seed in range(self.seeds)
        ]  # fmt: skip

    def starts(self) -> list[Tensor]:
        """The first weights of each seed, as one vector."""
        return [flat(self._network(seed).parameters()) for seed in range(self.seeds)]

    def _network(self, seed: int) -> nn.Sequential:
        vgg, inputs, side = (VGG16, 3, 32) if self.data else (SMALL, 1, 8)
        return vgg.build(inputs, side, 10, seed)

    def deviation(self, mirror: Mirror) -> float:
        """Mean |D − 1| over all weights of the network as it starts."""
        parts = []
        for it in weights(self._network(0)).values():
            potential = for_width(mirror.potential, width_of(it), printed=mirror.printed)
            parts.append((potential.inverse_hessian(it.double()) - 1).abs().flatten())
        return float(torch.cat(parts).mean())

    @property
    def counted(self) -> str:
        """How many seeds."""
        return f"{self.seeds} seed{'s' * (self.seeds > 1)}"

    @property
    def title(self) -> str:
        """What was trained on what."""
        return "VGG-16, CIFAR-10" if self.data else "small VGG, scikit-learn's digits"


def _images(data: str) -> Images:
    return cifar10(Path(data)) if data else digits()


def of(runs: Runs, mirror: Mirror) -> list[Trained]:
    """The runs of a mirror, by seed."""
    return [run for name, run in runs.items() if name.startswith(f"{mirror.name}-seed")]


def layer(run: Trained, place: int) -> Tensor:
    """The weights of a layer by its place, −1 for the last, without the bias."""
    return [it for it in run.weights.values() if it.ndim > 1][place]


def relative(weight: Tensor) -> Tensor:
    """|w| over the root mean square, flat, float64."""
    size = weight.abs().flatten().double()
    return size / size.square().mean().sqrt()


def draw_distribution(
    axis: Axes, runs: Sequence[Trained], mirror: Mirror, place: int, style: str = "-"
) -> None:
    """How large the weights of a layer are, over their root mean square, all seeds together."""
    sizes = torch.cat([relative(layer(run, place)) for run in runs])
    density, edges = torch.histogram(sizes, BINS, range=(0.0, 4.0), density=True)
    middle = 0.5 * (edges[1:] + edges[:-1])
    seen = density > 0
    axis.plot(
        middle[seen], density[seen], style, color=colour(mirror.potential), lw=1.1,
        label=mirror.label,
    )  # fmt: skip
    axis.set(xlabel=r"$|w|$ / root mean square", yscale="log", xlim=(0, 4))


def participations(runs: Sequence[Trained], place: int) -> Tensor:
    """(Σ|w|)²/(n Σw²) of a layer, (seeds,)."""
    return torch.tensor([participation(layer(run, place)) for run in runs], dtype=torch.float64)


def spread(values: Tensor, form: str = ".3f") -> str:
    """Mean ± standard deviation over seeds."""
    mean, deviation = format(float(values.mean()), form), form.removeprefix("+")
    return f"{mean} ± {format(float(values.std()), deviation)}" if len(values) > 1 else mean


def distance(
    runs: Sequence[Trained], others: Sequence[Trained], starts: Sequence[Tensor]
) -> Tensor:
    """‖θ − θ'‖ / ‖θ' − θ(0)‖ of runs with equal seeds, (seeds,)."""
    found = []
    for run, other, start in zip(runs, others, starts, strict=True):
        theta, reference = flat(run.weights.values()), flat(other.weights.values())
        found.append((theta - reference).norm() / (reference - start).norm())
    return torch.stack(found)


def flat(parameters: Iterable[Tensor]) -> Tensor:
    """All in one vector, float64."""
    return torch.cat([it.detach().flatten() for it in parameters]).double()


def ordered(columns: Iterable[Tensor]) -> Tensor:
    """For which seeds the values rise from column to column, (seeds,)."""
    table = torch.stack(list(columns))
    return (table[1:] > table[:-1]).all(0)


def distribution_table(
    runs: Runs, mirrors: Iterable[Mirror], place: int, title: str
) -> ResultTable:
    """The histograms that are drawn, as numbers: quantiles of |w| over the root mean square."""
    shares = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
    rows = []
    for mirror in mirrors:
        for seed, run in enumerate(of(runs, mirror)):
            sizes = relative(layer(run, place)).sort().values
            found = [float(sizes[int(share * (len(sizes) - 1))]) for share in shares]
            rows.append((mirror.name, str(seed), *(f"{value:.6g}" for value in found)))
    columns = ("mirror", "seed", *(f"quantile_{share:g}" for share in shares))
    return ResultTable(title, columns, tuple(rows))

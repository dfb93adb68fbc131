"""The training of a vision network by mirror descent (Appendix J.3), as scenarios are made of."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from mirrorode.experiment.images import Images
from mirrorode.experiment.scenario import Job, Show
from mirrorode.experiment.vgg import VGG, prune
from mirrorode.flow.checkpoint import Checkpoint
from mirrorode.flow.description import describe
from mirrorode.flow.mirror_descent import MirrorDescent
from mirrorode.flow.trajectory import write_atomically
from mirrorode.problem.arrays import DAMAGE, read_arrays
from mirrorode.problem.errors import InputError
from mirrorode.problem.potentials import SeparablePotential
from mirrorode.theory.margins import layer_product_margin

SPARSITIES = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
PAUSE = 20.0  # seconds between two checkpoints
POINTS = 100  # of the history
COLLAPSE = 10.0  # times the smallest loss, at the end
AT_ONCE = 1000  # images that are evaluated together
MEASURES = ("epoch", "train_loss", "train_accuracy", "test_accuracy", "margin")


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network.

    Attributes:
        history: the `MEASURES` at the start, the end and about a hundred times between: epoch, loss
            and accuracy on the images to train on, accuracy on those to test on, margin of J.3;
            (T, 5).
        weights: by name, with the bias of the first layer.
        pruned: accuracy on the images to test on at `SPARSITIES`, each layer pruned by magnitude.
        seconds: of training.
    """

    history: Tensor
    weights: dict[str, Tensor]
    pruned: Tensor
    seconds: float

    def measure(self, name: str) -> Tensor:
        """One of `MEASURES`, (T,)."""
        return self.history[:, MEASURES.index(name)]

    def save(self, path: Path) -> None:
        """Write everything to one ``.npz`` file, atomically."""
        arrays = {f"weight {name}": it.cpu().numpy() for name, it in self.weights.items()}
        buffer = io.BytesIO()
        arrays |= {"history": self.history.numpy(), "pruned": self.pruned.numpy()}
        np.savez(buffer, seconds=np.array(self.seconds), **arrays)  # type: ignore[arg-type]
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read it.

        Raises:
            InputError: if there is no such file, or it is damaged.
        """
        try:
            arrays = read_arrays(path)
            found = {
                name.removeprefix("weight "): torch.from_numpy(it)
                for name, it in arrays.items()
                if name.startswith("weight ")
            }
            history, pruned = (torch.from_numpy(arrays[name]) for name in ("history", "pruned"))
            return cls(history, found, pruned, float(arrays["seconds"]))
        except DAMAGE:
            sentence = f"`path` must be a stored training, but {path} cannot be read as one"
            raise InputError(sentence) from None


@dataclass(frozen=True)
class Training(Job):
    """One network of a scenario, trained on batches of images with the cross-entropy loss.

    Attributes:
        name, study: as of any job.
        images: what is learned.
        vgg: the network.
        potential: scaled to the width of each layer, as J.3 does; `printed` is whether by the
            power of the width that is printed there.
        lr: η.
        epochs: passes over the images.
        batch: images a step.
        seed: of the weights and of the order of images.
        device: where. On CUDA with bfloat16 where that is safe, channels last and compiled, unless
            deterministic.
        deterministic: whether only algorithms that always give the same bits are used.
    """

    name: str
    images: Images
    vgg: VGG
    potential: SeparablePotential
    lr: float
    epochs: int
    batch: int
    seed: int
    device: str
    printed: bool = False
    deterministic: bool = False
    study: str = ""

    def identity(self) -> dict[str, Any]:
        """Images, network, potential and how it is trained."""
        known = ("vgg", "lr", "epochs", "batch", "seed", "printed")
        told = {name: repr(getattr(self, name)) for name in known}
        return told | {"potential": describe(self.potential), "images": self.images.digest}

    def modules(self) -> set[str]:
        """This one, that of the network and that of the images."""
        homes = {type(it).__module__ for it in (self, self.images, self.vgg, self.potential)}
        return homes | {layer_product_margin.__module__}

    @property
    def fast(self) -> bool:
        """Whether in mixed precision, channels last and compiled."""
        return torch.device(self.device).type == "cuda" and not self.deterministic

    @property
    def mode(self) -> str:  # type: ignore[override]
        """Device and precision."""
        return f"{torch.device(self.device).type}{', bfloat16' * self.fast}"

    def compute(self, checkpoint: Path, show: Show) -> Trained:
        """Train, from the checkpoint if there is one."""
        identity = hashlib.sha256(json.dumps([self.identity(), self.mode]).encode()).hexdigest()
        file = Checkpoint(checkpoint, torch.device(self.device), identity)
        with _deterministic(self.deterministic):
            state = State.start(self)
            if (found := file.read()) is not None:
                state.restore(found)
            written = time.monotonic()
            while state.epochs < self.epochs and not state.diverged:
                state.epoch()
                show(state.epochs / self.epochs, state.line())
                if time.monotonic() > written + PAUSE:
                    file.keep(state.epochs, state.kept())
                    written = time.monotonic()
            return state.end()

    def told(self, result: Trained) -> dict[str, Any]:
        """Whether it diverged, what it reached, and at what cost; there are no verdicts."""
        last = dict(zip(MEASURES, result.history[-1].tolist(), strict=True))
        epochs = int(last.pop("epoch"))
        best = float(result.measure("train_loss").nan_to_num(math.inf).min())
        status, message = "TRAINED", f"{epochs} epochs"
        if not math.isfinite(last["train_loss"]):
            status, message = "DIVERGED", f"{message} until the loss was no number"
        elif last["train_loss"] > COLLAPSE * best:
            status, message = "COLLAPSED", f"{message}; the loss had been {best:.2g} before"
        steps = epochs * math.ceil(len(self.images.x) / self.batch)
        at80 = float(result.pruned[SPARSITIES.index(0.8)])
        return {
            "network": repr(self.vgg),
            "potential": repr(self.potential),
            "images": self.images.name,
            "status": status,
            "message": message,
            "statistics": {
                "steps": steps,
                "evaluations": steps,
                "events": 0,
                "wall_seconds": result.seconds,
                "images_per_second": epochs * len(self.images.x) / max(result.seconds, 1e-9),
            },
            "measured": last | {"pruned_80": at80},
            "verdicts": [],
        }

    def load(self, path: Path) -> Trained:
        """Read it."""
        return Trained.load(path)


@dataclass
class State:
    """A training under way: all that decides what comes next is in `kept`.

    Attributes:
        job: what is trained; x, y: its images on the device.
        network, forward: its network, and that as it is called in training.
        optimizer: of mirror descent.
        order: draws the order of the images.
        history: as of `Trained`; epochs: done; seconds: of training.
    """

    job: Training
    x: Tensor
    y: Tensor
    network: nn.Sequential
    forward: Any
    optimizer: MirrorDescent
    order: torch.Generator
    history: list[list[float]] = field(default_factory=list)
    epochs: int = 0
    seconds: float = 0.0

    @classmethod
    def start(cls, job: Training) -> State:
        """At the first weights."""
        _, inputs, side, _ = job.images.x.shape
        x, y = job.images.x.to(job.device), job.images.y.to(job.device)
        network = job.vgg.build(inputs, side, job.images.classes, job.seed).to(job.device)
        if job.fast:
            x = x.to(memory_format=torch.channels_last)
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        forward = torch.compile(network) if job.fast else network
        optimizer = MirrorDescent.for_width(network, job.potential, job.lr, printed=job.printed)
        order = torch.Generator().manual_seed(job.seed)
        state = cls(job, x, y, network, forward, optimizer, order)
        state.measure()
        return state

    @property
    def diverged(self) -> bool:
        """Whether the loss is no number any more."""
        return not math.isfinite(self.history[-1][1])

    def epoch(self) -> None:
        """One pass over the images in a new order."""
        begun = time.perf_counter()
        kind = torch.device(self.job.device).type
        for places in torch.randperm(len(self.x), generator=self.order).split(self.job.batch):
            places = places.to(self.x.device)
            self.optimizer.zero_grad()
            with torch.autocast(kind, torch.bfloat16, enabled=self.job.fast):
                outputs = self.forward(self.x[places])
                loss = nn.functional.cross_entropy(outputs, self.y[places])
            loss.backward()
            self.optimizer.step()
        finite = bool(loss.isfinite())
        self.seconds += time.perf_counter() - begun
        self.epochs += 1
        often = max(1, self.job.epochs // POINTS)
        if self.epochs % often == 0 or self.epochs == self.job.epochs or not finite:
            self.measure()

    @torch.no_grad()
    def measure(self) -> None:
        """Add the `MEASURES` of the network as it is to the history."""
        outputs = self._outputs(self.x)
        loss = nn.functional.cross_entropy(outputs, self.y)
        right = (outputs.argmax(1) == self.y).double().mean()
        margin = layer_product_margin(outputs, self.y, self._layers())
        numbers = torch.stack([loss.double(), right]).tolist()
        self.history.append([float(self.epochs), *numbers, self.accuracy(), float(margin)])

    def _layers(self) -> list[Tensor]:
        """One matrix a layer, the bias of the first being a column of it."""
        first, bias, *others = self.network.parameters()
        return [torch.cat([first.flatten(1), bias[:, None]], 1), *others]

    def _outputs(self, x: Tensor) -> Tensor:
        return torch.cat([self.network(part) for part in x.split(AT_ONCE)])

    @torch.no_grad()
    def accuracy(self) -> float:
        """On the images to test on."""
        found = self._outputs(self.job.images.test_x.to(self.x.device)).argmax(1).cpu()
        return float((found == self.job.images.test_y).double().mean())

    def line(self) -> str:
        """Where it is."""
        _, loss, _, test, _ = self.history[-1]
        speed = self.epochs * len(self.x) / max(self.seconds, 1e-9)
        return f"epoch {self.epochs}, loss {loss:.3g}, test {test:.1%}, {speed:,.0f} images/s"

    def kept(self) -> tuple[Any, ...]:
        """What a checkpoint holds."""
        parameters = [it.detach() for it in self.network.parameters()]
        return parameters, self.order.get_state(), self.history, self.epochs, self.seconds

    @torch.no_grad()
    def restore(self, kept: tuple[Any, ...]) -> None:
        """Go on from what a checkpoint held."""
        parameters, order, self.history, self.epochs, self.seconds = kept
        for own, read in zip(self.network.parameters(), parameters, strict=True):
            own.copy_(read)
        self.order.set_state(order.cpu())

    @torch.no_grad()
    def end(self) -> Trained:
        """The result; the network is pruned for it, each time further."""
        found = {name: it.detach().cpu().clone() for name, it in self.network.named_parameters()}
        pruned = []
        for sparsity in SPARSITIES:
            prune(self.network, sparsity)
            pruned.append(self.accuracy())
        history, accuracy = (torch.tensor(it, dtype=torch.float64) for it in (self.history, pruned))
        return Trained(history, found, accuracy, self.seconds)


@contextlib.contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Only algorithms that always give the same bits, in full precision."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA begins
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with torch.backends.cudnn.flags(allow_tf32=False):
            yield
    finally:
        torch.use_deterministic_algorithms(before)

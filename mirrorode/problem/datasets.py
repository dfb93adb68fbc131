"""Labelled samples for binary classification, and the paper's teacher–student problem."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mirrorode.problem.arrays import read_samples
from mirrorode.problem.errors import (
    LARGEST,
    SEEDS,
    InputError,
    require,
    require_finite,
    require_integer,
    require_memory,
)


@dataclass(frozen=True, eq=False)
class Dataset:
    """K samples with labels ±1.

    Args:
        x: inputs (K, d).
        y: labels (K,), each +1 or −1.
        teacher: where the labels come from a two-layer teacher, its neurons (teachers, 1 + d),
            the output weight a_j before the w_j; only figures use it.
        dtype: what x and y are converted to; float32 does not resolve log(1/loss) beyond 1e6.

    Raises:
        InputError: on a wrong shape, a non-finite entry or another label.
    """

    x: Tensor
    y: Tensor
    teacher: Tensor | None = None
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        try:
            x = torch.as_tensor(self.x).detach().to(self.dtype)
            y = torch.as_tensor(self.y).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"`x` and `y` must be arrays of numbers, but: {error}") from None
        require(x.ndim == 2 and len(x) > 0, "x", "have shape (samples, dim)", tuple(x.shape))
        require(y.shape == x.shape[:1], "y", f"have shape ({len(x)},)", tuple(y.shape))
        require_finite(x, "x")
        wrong = y[y.double().abs() != 1.0].tolist()
        require(not wrong, "y", "hold only +1 and -1", f"{wrong[:1]} in {len(wrong)} places")
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "y", y.to(x))

    @classmethod
    def load(cls, path: str | Path, dtype: torch.dtype = torch.float64) -> Dataset:
        """Samples from a file; nothing in it is executed.

        Args:
            path: ``.npz`` with arrays x (K, d) and y (K,); or ``.csv``, a sample a row, the label
                in the column that the header calls y or label, else in the last one.
            dtype: what they are converted to.

        Raises:
            InputError: if it is no such file, does not fit into memory, or holds no samples as
                above.
        """
        x, y = read_samples(Path(path))
        return cls(x, y, dtype=dtype)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        positive = int((self.y > 0).sum())
        return (
            f"Dataset({len(self)} samples in {self.x.shape[1]} dimensions, {positive} labelled +1)"
        )

    def to(self, device: torch.device | str) -> Dataset:
        """The same samples on another device."""
        teacher = None if self.teacher is None else self.teacher.to(device)
        return Dataset(self.x.to(device), self.y.to(device), teacher, self.dtype)


def teacher_student(
    samples: int = 200, teachers: int = 3, seed: int = 42, dim: int = 2, attempts: int = 1000
) -> Dataset:
    """The problem of Appendix J.1: points on the unit sphere, labelled by a random ReLU teacher.

    The teacher is f(x) = Σ_j a_j σ(w_j·x) with |a_j|‖w_j‖ = 1; labels are +1 where f > 0 and −1
    elsewhere. A teacher that gives one label only (18 % of them at the paper's size) is redrawn.

    Args:
        samples: K, at least 2.
        teachers: neurons of the teacher.
        seed: of the one generator that draws inputs and teachers.
        dim: input dimension; 2 in the paper.
        attempts: teachers drawn before giving up.

    Returns:
        A float64 :class:`Dataset` with both labels present.

    Raises:
        InputError: on a size that is not a positive integer, or if no teacher gave both labels.
    """
    for name, size, least in (("samples", samples, 2), ("teachers", teachers, 1), ("dim", dim, 1)):
        require_integer(size, name, least, LARGEST)
    require_integer(seed, "seed", 0, SEEDS)
    require_memory(8 * samples * (dim + teachers), "samples")
    require_memory(8 * teachers * dim, "teachers")
    generator = torch.Generator().manual_seed(seed)

    def sphere(count: int) -> Tensor:
        points = torch.randn(count, dim, generator=generator, dtype=torch.float64)
        return points / points.norm(dim=1, keepdim=True)

    x = sphere(samples)
    for _ in range(attempts):
        directions = sphere(teachers)
        signs = torch.randint(2, (teachers,), generator=generator) * 2.0 - 1.0
        output = torch.relu(x @ directions.T) @ signs.to(x)
        y = torch.where(output > 0, 1.0, -1.0).to(x)
        if 0 < int((y > 0).sum()) < samples:
            return Dataset(x, y, teacher=torch.cat([signs.to(x)[:, None], directions], 1))
    raise InputError(
        f"`teachers` must label the samples both ways, but {attempts} random teachers gave one "
        "label only"
    )

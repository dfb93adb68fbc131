"""What an integration needs to go on, in a file: written now and then, read when it begins.

Bit for bit the same whether it was interrupted or not: at fixed numbers of steps the state is
written, and the run goes on from what was written, not from what it had. The steps in between grow
with their number, so that all writing together is a few times the last file.
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mirrorode.flow.archive import pack, unpack
from mirrorode.flow.mirror_flow import MirrorFlow
from mirrorode.flow.trajectory import write_atomically
from mirrorode.problem.arrays import DAMAGE
from mirrorode.problem.errors import InputError, require

FIRST = 20  # steps before the first
GROWTH = 0.25  # of the number of steps, between one and the next
MAGIC = b"mirrorode checkpoint 1\n"


@dataclass
class Checkpoint:
    """The file of one integration.

    Attributes:
        path: the file; device: of the tensors in it.
        identity: all that the integration depends on, as text.
        due: the number of steps at which it is written next.
        failed: why it could not be written last, if so.
    """

    path: Path
    device: torch.device
    identity: str
    due: int = field(default_factory=lambda: FIRST)
    failed: str = ""
    _known: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def at(cls, path: str | Path, flow: MirrorFlow, start: Tensor, *others: object) -> Checkpoint:
        """That of the flow from ``start`` under ``others``, which print as all that they are.

        Raises:
            InputError: if nothing can be written at ``path``.
        """
        path = Path(path)
        fine = path.parent.is_dir() and not path.is_dir()
        require(fine, "checkpoint", "be a file in a folder that is there", str(path))
        data = flow.dataset
        content = hashlib.sha256()
        for tensor in (data.x, data.y, start):
            content.update(tensor.detach().cpu().numpy().tobytes())
        parts = (flow.network, flow.potential, data.x.dtype, data.x.device, *others)
        # An object that prints no more than its place in memory is known by its kind.
        described = re.sub(r" at 0x[0-9a-f]+", "", " ".join(map(repr, parts)))
        identity = f"{content.hexdigest()} {described}"
        known = {"flow": flow, "network": flow.network, "potential": flow.potential}
        return cls(path, data.x.device, identity, _known=known)

    def read(self) -> Any:
        """What was written, or None. A damaged file is set aside, with a warning.

        Raises:
            InputError: if the file is one of another integration.
        """
        if not self.path.exists():
            return None
        try:
            head, digest, data = self.path.read_bytes().split(b"\n", 2)
            if head + b"\n" != MAGIC or hashlib.sha256(data).hexdigest().encode() != digest:
                raise ValueError
            steps, identity, value = unpack(data, self._known, self.device)
        except DAMAGE:
            aside = set_aside(self.path)
            warnings.warn(
                f"{self.path} is no complete checkpoint: it is kept as {aside}, and the "
                "integration begins anew",
                stacklevel=2,
            )
            return None
        if identity != self.identity:
            sentence = "`checkpoint` must be of this flow, start and tolerance"
            raise InputError(f"{sentence}, but {self.path} is of another integration")
        self.due = _after(steps)
        return value

    def keep(self, steps: int, value: Any) -> Any:
        """Write ``value``, and return it as it would be read.

        A file that cannot be written leaves the last one, and is tried again the next time.
        """
        data = pack((steps, self.identity, value), self._known)
        digest = hashlib.sha256(data).hexdigest().encode()
        try:
            write_atomically(self.path, MAGIC + digest + b"\n" + data)
            self.failed = ""
        except OSError as error:
            self.failed = f"the checkpoint of step {steps} was not written ({error.strerror})"
        self.due = _after(steps)
        return unpack(data, self._known, self.device)[2]


def set_aside(path: Path) -> Path:
    """Rename what is damaged, so that it is neither used nor lost; the new path."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged{number}")).exists():
        number += 1
    return path.rename(aside)


def _after(steps: int) -> int:
    return steps + max(FIRST, math.ceil(GROWTH * steps))

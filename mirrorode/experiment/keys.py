"""What a trajectory depends on, hashed: the name of its run folder ends in it."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import mirrorode
from mirrorode.experiment.scenario import Job
from mirrorode.problem.modules import Network


def place(out: Path, name: str, job: Job) -> Path:
    """The folder of a run of scenario ``name``, by this version of the code."""
    content = json.dumps([identity(job), code(), _own_code(job)]).encode()
    return out / (job.study or name) / f"{job.name}-{hashlib.sha256(content).hexdigest()[:8]}"


def identity(job: Job) -> dict[str, Any]:
    """All that a trajectory depends on, but for the code."""
    data = job.flow.dataset
    tensors = (data.x, data.y, job.theta0)
    content = hashlib.sha256(b"".join(it.detach().cpu().numpy().tobytes() for it in tensors))
    return {
        "network": repr(job.flow.network),
        "potential": repr(job.flow.potential),
        "samples and start": content.hexdigest(),
        "until": repr(job.until),
        "saveat": None if job.saveat is None else [repr(rule) for rule in job.saveat],
        "rtol": job.rtol,
    }


@cache
def code() -> str:
    """The version of the code that decides trajectories, comments and docstrings apart."""
    home = Path(mirrorode.__file__).parent
    paths = sorted(path for part in ("problem", "flow") for path in (home / part).glob("*.py"))
    content = hashlib.sha256()
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            if ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
        content.update(f"{path.name}\n{ast.dump(tree)}\n".encode())
    return content.hexdigest()[:16]


def _own_code(job: Job) -> list[str]:
    """Digests of the files outside the package in which network and potential are defined."""
    kinds: set[type] = {type(job.flow.network), type(job.flow.potential)}
    if isinstance(job.flow.network, Network):
        kinds |= {type(part) for part in job.flow.network.module.modules()}
    homes = {kind.__module__ for kind in kinds}
    own = (sys.modules[it] for it in homes if it.split(".")[0] not in ("mirrorode", "torch"))
    paths = (getattr(module, "__file__", None) for module in own)
    return sorted(hashlib.sha256(Path(it).read_bytes()).hexdigest() for it in paths if it)

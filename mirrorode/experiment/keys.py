"""What a result depends on, hashed: the name of its run folder ends in it."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from functools import cache
from pathlib import Path

import mirrorode
from mirrorode.experiment.scenario import Job

ELSEWHERE = ("mirrorode.problem.", "mirrorode.flow.", "torch.")  # code that is told otherwise


def place(out: Path, name: str, job: Job) -> Path:
    """The folder of a run of scenario ``name``, by this version of the code."""
    content = json.dumps([job.identity(), job.mode, version(job)]).encode()
    return out / (job.study or name) / f"{job.name}-{hashlib.sha256(content).hexdigest()[:8]}"


@cache
def code() -> str:
    """The version of the code that decides trajectories, comments and docstrings apart."""
    home = Path(mirrorode.__file__).parent
    return _digest(
        tuple(path for part in ("problem", "flow") for path in (home / part).glob("*.py"))
    )


def version(job: Job) -> str:
    """That of all code that decides a job."""
    homes = (sys.modules[it] for it in job.modules() if not it.startswith(ELSEWHERE))
    paths = (getattr(module, "__file__", None) for module in homes)
    return f"{code()}-{_digest(tuple(Path(path) for path in paths if path))}"


@cache
def _digest(paths: tuple[Path, ...]) -> str:
    content = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                node.body = [it for it in node.body if not _is_text(it)]
        content.update(f"{path.name}\n{ast.dump(tree)}\n".encode())
    return content.hexdigest()[:16]


def _is_text(statement: ast.stmt) -> bool:
    """Whether it only documents what is above it."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)

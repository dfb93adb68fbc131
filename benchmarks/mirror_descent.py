"""What a step of `MirrorDescent` costs beside one of `torch.optim.SGD`, on VGG-16.

Both are timed in turns in one run, as machines are shared. Writes benchmarks/mirror_descent.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

import mirrorode as mo
from mirrorode.experiment.vgg import VGG16

ROUNDS = 5
BATCH = 16
SLOW = 2.0  # seconds, of which once is enough
CASES: dict[str, tuple[mo.SeparablePotential, bool]] = {
    "Euclidean": (mo.Euclidean(), False),
    "hyperbolic": (mo.HyperbolicEntropy(0.1), False),
    "p = 10": (mo.SmoothedHomogeneous(10, 0.1), False),
    "Euclidean, dual": (mo.Euclidean(), True),
    "hyperbolic, dual": (mo.HyperbolicEntropy(0.1), True),
    "p = 10, dual": (mo.SmoothedHomogeneous(10, 0.1), True),
}


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def main() -> None:
    """Measure, print, write."""
    network = VGG16.build(3, 32, 10, seed=0)
    x, y = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
    sgd = torch.optim.SGD(network.parameters(), lr=1e-6)
    every = {
        name: mo.MirrorDescent.for_width(network, potential, 1e-6, dual=dual)
        for name, (potential, dual) in CASES.items()
    }

    def passes() -> None:
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(network(x), y).backward()

    passes()
    for optimizer in every.values():
        optimizer.step()  # the first one makes what it keeps
    both: list[float] = []
    update: dict[str, list[float]] = {name: [] for name in ("SGD", *every)}
    for _ in range(ROUNDS):
        both.append(seconds(passes))
        update["SGD"].append(seconds(sgd.step))
        for name, optimizer in every.items():
            if not update[name] or min(update[name]) < SLOW:
                update[name].append(seconds(optimizer.step))
    forward = min(both) * 100 / BATCH  # of the paper's batches of 100
    times = {name: min(found) for name, found in update.items()}
    rows = [
        f"| {name} | {times[name] / times['SGD']:.1f} | "
        f"{(forward + times[name]) / (forward + times['SGD']):.2f} |"
        for name in every
    ]
    text = (
        "# A step of mirror descent beside one of SGD\n\n"
        "VGG-16 (15 million weights), this machine's CPU, "
        f"{torch.get_num_threads()} threads, the best of {ROUNDS} in turns. Forward and backward "
        "pass are those of a batch of 100 images of 32 × 32. Drawn by "
        "`python benchmarks/mirror_descent.py`.\n\n"
        "| potential | update: times SGD's | whole step: times SGD's |\n| --- | --- | --- |\n"
        + "\n".join(rows)
        + "\n"
    )
    print(text)
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

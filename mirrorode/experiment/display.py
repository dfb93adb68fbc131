"""What a sweep shows while it runs: how many runs have ended, and a row for each under way."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Display:
    """The one display of a sweep; a context in which it is drawn.

    Args:
        title: of the row that counts.
        labels: of the runs to do, by number.
        stored: how many more were stored before.
        console: where.
    """

    def __init__(self, title: str, labels: Sequence[str], stored: int, console: Console) -> None:
        self._labels, self._stored = labels, stored
        self._rows: dict[int, TaskID] = {}
        self._ended: dict[int, str] = {}
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=20),
            TextColumn("{task.fields[state]}"), TimeElapsedColumn(), console=console,
        )  # fmt: skip
        count = stored + len(labels)
        self._total = self._progress.add_task(title, total=count, completed=stored, state="")
        self._count()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def tell(self, number: int, share: float, state: str) -> None:
        """Show where a run is."""
        if number in self._ended:
            return
        if number not in self._rows:
            label = self._labels[number]
            self._rows[number] = self._progress.add_task(label, total=1.0, state=state)
        self._progress.update(self._rows[number], completed=share, state=state)

    def end(self, number: int, why: str) -> None:
        """A run has ended, and failed if it says why."""
        self._ended[number] = why
        if number in self._rows:
            self._progress.remove_task(self._rows[number])
        if why:
            self._progress.console.print(f"{self._labels[number]} failed: {why}", soft_wrap=True)
        self._count()

    def _count(self) -> None:
        done = self._stored + len(self._ended)
        failed = sum(map(bool, self._ended.values()))
        state = f"{done} of {self._stored + len(self._labels)} runs, {self._stored} stored before"
        state += f", {failed} failed" * bool(failed)
        self._progress.update(self._total, completed=done, state=state)

"""Verdicts: what is said of one statement of the paper along one trajectory.

A statement about points is judged to round-off; one about increments, or conserved quantities,
against the tolerance of the integration.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from enum import Enum

from rich import box
from rich.console import Console
from rich.table import Table

ROUND_OFF = 1e-11
DRIFT = 100.0  # multiples of rtol that a conserved quantity may drift over a whole run
NO_DEGREE = "the potential has no asymptotic degree"
NEVER_LATE = "the loss is never below 1 at two saved points"


class Outcome(Enum):
    """What can be said of a statement; the text is the word for it."""

    HOLDS = "holds"
    FAILS = "fails"
    NOT_YET = "not yet"
    NOT_APPLICABLE = "not applicable"


COLOURS = {
    Outcome.HOLDS: "green",
    Outcome.FAILS: "bold red",
    Outcome.NOT_YET: "yellow",
    Outcome.NOT_APPLICABLE: "dim",
}


@dataclass(frozen=True)
class Verdict:
    """One statement along one trajectory.

    Attributes:
        statement: its number in the paper and what it says.
        outcome: holds, fails, not yet, or not applicable.
        slack: by how much it holds at least, negative where it fails or is yet to come; NaN if it
            is not applicable.
        detail: what was measured; when it is expected to hold; why it is not applicable.
    """

    statement: str
    outcome: Outcome
    slack: float
    detail: str

    @property
    def passed(self) -> bool | None:
        """True where it holds, False where it fails, None where neither can be said."""
        return {Outcome.HOLDS: True, Outcome.FAILS: False}.get(self.outcome)

    @classmethod
    def judged(cls, statement: str, slack: float, detail: str) -> Verdict:
        """Holds if ``slack`` is not negative, fails otherwise, also where it is NaN."""
        outcome = Outcome.HOLDS if slack >= 0 else Outcome.FAILS
        return cls(statement, outcome, -math.inf if math.isnan(slack) else slack, detail)

    @classmethod
    def eventual(cls, statement: str, slack: float, detail: str, when: str) -> Verdict:
        """Holds if ``slack`` is not negative; not yet otherwise, and ``when`` says when."""
        if slack >= 0:
            return cls(statement, Outcome.HOLDS, slack, detail)
        return cls(statement, Outcome.NOT_YET, slack, f"{detail}; {when}")

    @classmethod
    def not_applicable(cls, statement: str, reason: str) -> Verdict:
        """Nothing that it speaks about is there."""
        return cls(statement, Outcome.NOT_APPLICABLE, math.nan, reason)


class Verdicts(list[Verdict]):
    """Verdicts that print as a table."""

    title = "Statements along the trajectory"

    @property
    def passed(self) -> bool:
        """Whether none failed."""
        return all(verdict.outcome is not Outcome.FAILS for verdict in self)

    def table(self) -> Table:
        """As a rich table."""
        table = Table(title=self.title, box=box.SIMPLE_HEAD)
        for column in ("statement", "verdict", "slack", "measured"):
            table.add_column(column, overflow="fold")
        for row in self:
            slack = "" if math.isnan(row.slack) else f"{row.slack:.3g}"
            word = f"[{COLOURS[row.outcome]}]{row.outcome.value}[/]"
            table.add_row(row.statement, word, slack, row.detail)
        return table

    def __str__(self) -> str:
        buffer = io.StringIO()
        Console(file=buffer, width=120).print(self.table())
        return buffer.getvalue()

    def rows(self) -> list[dict[str, str | float | bool | None]]:
        """As what JSON can hold; a slack that is no finite number is null."""
        return [
            {
                "statement": row.statement,
                "outcome": row.outcome.value,
                "passed": row.passed,
                "slack": row.slack if math.isfinite(row.slack) else None,
                "detail": row.detail,
            }
            for row in self
        ]

    def to_json(self) -> str:
        """As a JSON list."""
        return json.dumps(self.rows(), indent=1, ensure_ascii=False)

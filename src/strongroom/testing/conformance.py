"""Runs the cases that check a provider, in pytest or without any framework."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from strongroom.storage import Feature
from strongroom.testing.cases import keys, provider, record, typed, watch
from strongroom.testing.trial import Case, Make, Trial

__all__ = ["CASES", "SLOW_CASES", "Outcome", "Report", "conformance", "conformance_tests"]

_ALL_CASES = [
    case
    for module in (provider, record, typed, keys, watch)
    for case in vars(module).values()
    if isinstance(case, Case)
]
CASES = tuple(case for case in _ALL_CASES if not case.slow)
"""Cases that take well under a second each."""
SLOW_CASES = tuple(case for case in _ALL_CASES if case.slow)
"""Cases with large values and many records."""

DEADLINE_SECONDS = 60.0


@dataclass(frozen=True)
class Outcome:
    """How one case ended. It was skipped if `lacks` has features that are not declared."""

    case: Case
    lacks: frozenset[Feature] = frozenset()
    error: BaseException | None = None

    def __str__(self) -> str:
        if self.lacks:
            needed = ", ".join(sorted(feature.name for feature in self.lacks))
            return f"skipped  {self.case.name} (needs {needed})"
        if self.error is not None:
            return f"FAILED   {self.case.name}: {type(self.error).__name__}: {self.error}"
        return f"passed   {self.case.name}"


@dataclass
class Report:
    """What a provider declares, and how the cases ended. Show it with `print(report)`."""

    features: frozenset[Feature] = frozenset()
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def failed(self) -> list[Outcome]:
        """The cases that failed."""
        return [outcome for outcome in self.outcomes if outcome.error is not None]

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failed

    def __str__(self) -> str:
        lines = [f"{feature.name:<8} {self._declared(feature)}" for feature in Feature]
        lines += ["", *map(str, self.outcomes), ""]
        skipped = sum(bool(outcome.lacks) for outcome in self.outcomes)
        passed = len(self.outcomes) - skipped - len(self.failed)
        lines.append(f"{passed} passed, {len(self.failed)} failed, {skipped} skipped")
        return "\n".join(lines)

    def _declared(self, feature: Feature) -> str:
        return "declared" if feature in self.features else "-"


async def conformance(
    make: Make, *, cases: Sequence[Case] = CASES + SLOW_CASES, deadline: float = DEADLINE_SECONDS
) -> Report:
    """Run `cases` on a provider, each with new names and in a new directory.

    >>> report = asyncio.run(conformance(MyProvider))
    >>> print(report)

    Args:
        make: The provider's class, or a function with the same arguments, settings and clock.
            Calling it again with the same settings must give a provider of the same data.
        cases: Which cases to run.
        deadline: Seconds that each may take.
    """
    report = Report()
    with tempfile.TemporaryDirectory(prefix="strongroom-") as directory:
        report.features = await _features(make, Path(directory) / "features")
        for number, case in enumerate(cases):
            outcome = await _try(case, make, Path(directory) / str(number), deadline)
            report.outcomes.append(outcome)
    return report


def conformance_tests(
    make: Make, *, cases: Sequence[Case] = CASES + SLOW_CASES, deadline: float = DEADLINE_SECONDS
) -> Callable[..., None]:
    """The suite as a parametrised test of pytest.

    >>> test_my_provider = conformance_tests(MyProvider)
    """
    import pytest  # noqa: PLC0415  # the suite itself needs no framework

    @pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in cases])
    def test_conformance(case: Case, tmp_path: Path) -> None:
        outcome = asyncio.run(_try(case, make, tmp_path / "data", deadline))
        if outcome.lacks:
            pytest.skip(str(outcome))
        if outcome.error is not None:
            raise outcome.error

    return test_conformance


async def _features(make: Make, directory: Path) -> frozenset[Feature]:
    trial = Trial(make, directory)
    await trial.start()
    try:
        return (await trial.store()).features
    finally:
        await trial.provider.close()


async def _try(case: Case, make: Make, directory: Path, deadline: float) -> Outcome:
    try:
        trial = Trial(make, directory)
        async with asyncio.timeout(deadline):
            await trial.start()
            try:
                lacks = case.needs - (await trial.store()).features
                if not lacks:
                    await case.run(trial)
            finally:
                await trial.provider.close()
    except Exception as error:  # noqa: BLE001  # any error is the outcome of this case
        return Outcome(case, error=error)
    return Outcome(case, lacks=lacks)

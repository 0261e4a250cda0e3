"""For authors of agents: `serving`. For authors of providers: a conformance suite and faults."""

from strongroom.testing.conformance import (
    CASES,
    SLOW_CASES,
    Outcome,
    Report,
    conformance,
    conformance_tests,
)
from strongroom.testing.faults import FaultyStore
from strongroom.testing.leaks import Leak, leak_scan
from strongroom.testing.serving import serving
from strongroom.testing.trial import Case, ManualClock

__all__ = [
    "CASES",
    "SLOW_CASES",
    "Case",
    "FaultyStore",
    "Leak",
    "ManualClock",
    "Outcome",
    "Report",
    "conformance",
    "conformance_tests",
    "leak_scan",
    "serving",
]

"""`make demo-postgres` loses nothing when it kills a replica."""

import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "scripts" / "demo_postgres.py"


@pytest.mark.slow
def test_a_replica_that_is_killed_in_the_middle_of_its_work_loses_nothing() -> None:
    done = subprocess.run(
        [sys.executable, DEMO], check=False, capture_output=True, text=True, timeout=100
    )
    assert done.stdout.endswith("600 of 600 sales are stored, each once; 0 are lost\n"), done.stderr
    assert "kill -9 of second@fame.fabric" in done.stdout

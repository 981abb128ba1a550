"""One rank that fails, anywhere, ends the job in seconds: with its own text and the right code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.failing import CAUSE, RANKS, STAGES
from tests.distributed.jobs import ROOT, environment

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

# The averaged weights are put in and out by other collectives in each of these.
STAGES_OF_ZERO = [f"validation:{rank}:{zero}" for zero in ("zero0", "zero1") for rank in (0, 1)]
CASES = [
    f"{name}:{rank}"
    for name, stage in STAGES.items()
    for rank in range(1 if stage.rank_0_only else RANKS)
] + STAGES_OF_ZERO
QUICK = {"joining:1", "opening the data:1", "loading:1", "recording:0", "reading data:1"}
QUICK |= {"stepping:1", "validation:1", "writing:1", "completing:0", "closing:0"}
"""One of each kind of place: beside collectives, before and after them, in a thread, at the end."""
ENDS_LATE = {"closing:0"}
"""The other rank has ended well by then."""


@pytest.fixture(scope="module")
def outcomes(dataset, request, tmp_path_factory) -> dict[str, dict]:
    """How each chosen case went; one process forks all ranks."""
    items = [item for item in request.session.items if item.path == Path(__file__)]
    chosen = [item.callspec.params["case"] for item in items]
    out = tmp_path_factory.mktemp("failing")
    done = subprocess.run(
        [sys.executable, "-m", "tests.distributed.failing", str(dataset), str(out), *chosen],
        cwd=ROOT,
        env=environment() | {"TORCH_CPP_LOG_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {outcome["case"]: outcome for outcome in found}


@pytest.mark.parametrize(
    "case",
    [case if case in QUICK else pytest.param(case, marks=pytest.mark.long) for case in CASES],
)
def test_a_failing_rank_ends_the_job_with_its_own_text(outcomes, case):
    outcome = outcomes[case]
    said = "\n".join(outcome["said"])
    expected = [outcome["expected"]] * RANKS
    if case in ENDS_LATE:
        expected[1] = 0
    assert outcome["codes"] == expected, said
    # a rank that waits for the other in vain takes the ten minutes of guard.timeout
    assert outcome["seconds"] < 60, said
    assert any(line.startswith("train: ") and CAUSE in line for line in said.splitlines()), said
    assert "the job is lost" not in said

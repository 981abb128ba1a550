"""A soak: one run without faults and one under many, which has to end with the same weights.

`python -m tests.distributed.soak --steps 300 --seed 0 --out DIR` takes a quarter of an hour or so
and leaves report.json and report.md in DIR; exit code 1 if a check fails. Needs root for a small
file system that becomes full; without, that fault is left out and the report says so.
"""

import argparse
import json
import os
import platform
import random
import shutil
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.distributed.soak_checks import Check, check, single_bytes
from tests.distributed.soak_faults import SOAK, Harm, as_row, schedule, small_disk
from tests.distributed.soak_job import BATCH, EVERY, RANKS, Job, copy_code, make_dataset

SPARE = 5
"""Sessions a run may take beyond one for each fault."""
PROBES = 500
"""Single inverted bytes that the loader is given after the soak."""


class SoakError(Exception):
    """The soak itself cannot go on."""


def soak(out: Path, steps: int, seed: int, counts: dict[str, int], say: Any) -> dict[str, Any]:
    """Both runs and the report on them; leaves everything in `out`, which must not exist.

    Args:
        counts: how often each fault strikes.
        say: called with a line of text at every event.
    """
    began = time.monotonic()
    dataset = make_dataset(out / "pictures")
    code = copy_code(out / "code")
    clean = Job(code, out / "clean", out / "clean-record", dataset, steps)
    clean.begin()
    exit_code, _ = clean.end(3600)
    if exit_code != 0:
        raise SoakError(f"the clean run ended with exit code {exit_code}: {clean.log}")
    clean_seconds = time.monotonic() - began
    say(f"clean run: {steps} steps in {clean_seconds:.0f} s")

    faulty = Job(code, out / "disk" / "run", out / "faulty-record", dataset, steps)
    dice = random.Random(seed)
    without = []
    with ExitStack() as stack:
        if os.geteuid() == 0:
            stack.enter_context(small_disk(out / "disk"))
        else:
            without = [kind for kind in counts if kind == "the disk full"]
            counts = {kind: n for kind, n in counts.items() if kind not in without}
        harm = Harm(faulty, out / "disk", dice)
        plan = schedule(counts, steps, dice)
        started = time.monotonic()
        sessions = under_faults(harm, plan, say)
        faulty_seconds = time.monotonic() - started
        settle(harm)
        checks = [
            *check(clean, faulty, dataset, steps, out, harm.injected),
            Check("every planned fault struck", len(harm.injected) == len(plan), f"{len(plan)}"),
            *after_sessions(harm, sessions),
        ]
        shutil.copytree(faulty.run, out / "faulty" / "soak")
    lines = faulty.consumed(0)
    return {
        "steps": steps,
        "seed": seed,
        "faults": [as_row(fault) for fault in harm.injected],
        "left out": without,
        "sessions": sessions,
        "totals": {
            "faults injected": len(harm.injected),
            "faults survived": sum(fault.as_expected for fault in harm.injected),
            "sessions": len(sessions),
            "steps done": len(lines),
            "steps repeated": len(lines) - steps,
            "buffers left in /dev/shm": faulty.shared_left,
            "seconds of the clean run": round(clean_seconds),
            "seconds under faults": round(faulty_seconds),
        },
        "one inverted byte of an image": single_bytes(dataset, PROBES),
        "checks": [c._asdict() for c in checks],
        "passed": all(c.holds for c in checks),
        "run": f"{RANKS} ranks, ZeRO-3, batch {BATCH}, a checkpoint every {EVERY} steps, 2 kept",
        "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def under_faults(harm: Harm, plan: list[tuple[str, int]], say: Any) -> list[dict[str, Any]]:
    """Start the run again and again until it is done; what each session came to.

    Raises:
        SoakError: if that takes more sessions than the faults explain.
    """
    job, waiting, sessions = harm.job, [*plan], []
    for _ in range(len(plan) + SPARE):
        job.begin()
        ended = False
        while waiting and not ended:
            struck = len(harm.injected)
            ended = harm.inject(*waiting[0])
            if len(harm.injected) > struck:
                fault = harm.injected[-1]
                say(
                    f"session {fault.session}, step {fault.step}: {fault.kind}: {fault.what}: "
                    f"exit code {fault.exit_code}; {fault.message}"
                    + ("" if fault.as_expected else "  NOT AS EXPECTED")
                )
                waiting.pop(0)
        code, _ = job.end(3600)
        struck = bool(harm.injected) and harm.injected[-1].exit_code is not None
        by_fault = struck and harm.injected[-1].session == job.session
        first = next((r["step"] for r in job.consumed(0) if r["session"] == job.session), None)
        sessions.append({"exit code": code, "by a fault": by_fault, "first step": first})
        if not by_fault:
            say(f"session {job.session} ended by itself, exit code {code}")
        if code == 0:
            return sessions
    raise SoakError(f"not done after {len(sessions)} sessions: {job.log}")


def settle(harm: Harm) -> None:
    """What each fault has cost: seconds until the run was a step further, and steps repeated.

    Of a fault that ended its session from the last step of that session on, not counting what the
    session still did after the fault struck; of another one from the fault on.
    """
    lines = harm.job.consumed(0)
    for fault in harm.injected:
        if fault.exit_code is None:
            ahead = (r["at"] for r in lines if r["at"] > fault.at and r["step"] >= fault.step)
            fault.seconds_lost = next(ahead) - fault.at
            continue
        before = [line for line in lines if line["session"] <= fault.session]
        # Before the first step of all nothing can be repeated.
        last = before[-1] if before else {"step": -1, "at": fault.at}
        later = [line for line in lines if line["session"] > fault.session]
        ahead = (line["at"] for line in later if line["step"] > last["step"])
        fault.seconds_lost = next(ahead) - last["at"]
        fault.steps_repeated = last["step"] + 1 - later[0]["step"]


def after_sessions(harm: Harm, sessions: list[dict[str, Any]]) -> list[Check]:
    """What must hold of the sessions, apart from how their faults ended."""
    alone = [s for s in sessions if not s["by a fault"] and s["exit code"] != 0]
    checks = [Check("no session failed without a fault", not alone, f"{len(alone)} did")]
    for fault in (fault for fault in harm.injected if fault.damaged):
        # The next session may have been killed before it came to look at checkpoints.
        logs = sorted(harm.job.record.glob("session-*.log"))[fault.session :]
        text = " ".join("".join(log.read_text() for log in logs).split())
        at = int(fault.damaged.removeprefix("step-"))
        first = next(s["first step"] for s in sessions[fault.session :] if s["first step"])
        passed = f"{fault.damaged}: " in text and "its checksum differs" in text and first < at
        checks.append(Check("a damaged checkpoint is passed over", passed, f"{first} before {at}"))
    return checks


def machine() -> dict[str, Any]:
    """What the soak ran on."""
    packages = {name: version(name) for name in ("torch", "deepspeed", "numpy")}
    return {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "load average at the end": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        **packages,
    }


FAULT_COLUMNS = ("step", "fault", "exit", "message", "s lost", "steps repeated")


def fault_cells(fault: dict[str, Any]) -> list[str]:
    """A fault's row of the tables."""
    code = "goes on" if fault["exit_code"] is None else str(fault["exit_code"])
    code += "" if fault["as_expected"] else " UNEXPECTED"
    what = f"{fault['kind']}: {fault['what']}"
    cells = [fault["step"], what, code, fault["message"][:160], fault["seconds_lost"]]
    return [*map(str, cells), str(fault["steps_repeated"])]


def markdown(report: dict[str, Any], command: str) -> str:
    """The report as a page."""

    def row(cells: list[str] | tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    lines = [f"`{command}`", "", f"{report['date']}: {report['run']}, {report['steps']} steps."]
    lines += ["", row(FAULT_COLUMNS), "|" + "---|" * len(FAULT_COLUMNS)]
    lines += [row(fault_cells(fault)) for fault in report["faults"]]
    lines += [f"\nLeft out: {', '.join(report['left out'])} (needs root)."] * bool(
        report["left out"]
    )
    for title in ("totals", "one inverted byte of an image", "machine"):
        lines += ["", f"{title}: " + ", ".join(f"{k} {v}" for k, v in report[title].items())]
    lines += ["", row(("check", "holds", "")), "|---|---|---|"]
    lines += [
        row((c["name"], "yes" if c["holds"] else "NO", c["detail"])) for c in report["checks"]
    ]
    return "\n".join(lines) + "\n"


def show(report: dict[str, Any], console: Console) -> None:
    """The report on the screen."""
    table = Table(*FAULT_COLUMNS)
    for fault in report["faults"]:
        table.add_row(*map(escape, fault_cells(fault)))
    console.print(table)
    checks = Table("check", "holds", "")
    for found in report["checks"]:
        checks.add_row(found["name"], "yes" if found["holds"] else "NO", found["detail"])
    console.print(checks)
    for title in ("totals", "one inverted byte of an image", "machine"):
        console.print(f"{title}: " + ", ".join(f"{k} {v}" for k, v in report[title].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=6, help="times that a random rank is killed")
    parser.add_argument("--out", type=Path, required=True, help="a folder to make")
    arguments = parser.parse_args()
    console = Console()
    out = arguments.out.absolute()
    out.mkdir(parents=True)
    counts = SOAK | {"a rank killed": arguments.kills}
    report = soak(
        out, arguments.steps, arguments.seed, counts, lambda line: console.print(line, markup=False)
    )
    command = f"python -m tests.distributed.soak {' '.join(sys.argv[1:])}"
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "report.md").write_text(markdown(report, command))
    show(report, console)
    sys.exit(0 if report["passed"] else 1)


if __name__ == "__main__":
    main()

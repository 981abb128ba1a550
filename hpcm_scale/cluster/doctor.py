"""Looks at the hosts of a job before the job does, and says what to put right."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.table import Table
from rich.text import Text

from hpcm_scale.cluster.host_report import ROOT, HostReport, host_report
from hpcm_scale.cluster.hosts import Host, ssh

CLOCKS = 2.0
"""Seconds that two clocks may differ."""
REPORT_TIMEOUT = 120.0
"""Seconds in which a host tells its facts, a cold file system included."""
ALL_REDUCE_TIMEOUT = 600.0
"""Seconds for an all-reduce, which may have to compile DeepSpeed's collectives first."""


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check on one host."""

    check: str
    host: str
    found: str
    remedy: str | None = None
    """Remedy; None if nothing is wrong."""


def examine_hosts(
    hosts: Sequence[Host], data: str | None, out: Path | None, port: int
) -> list[CheckResult]:
    """All checks on the hosts of a hostfile; the all-reduce only if nothing else stands against it.

    Args:
        data: a dataset that all hosts should have.
        out: a folder that all hosts should share.
        port: of the first host, where the ranks are to meet.
    """
    token = _write_token(out)
    try:
        with ThreadPoolExecutor(32) as pool:
            rows = [row for pair in pool.map(check_ssh, hosts) for row in pair]
            silent = {row.host for row in rows if row.check == "ssh" and row.remedy}
            there = [host for host in hosts if host.name not in silent]
            answers = list(pool.map(lambda host: ask(host, data, token, port), there))
    finally:
        if token:
            token.unlink()
    rows += [answer for answer in answers if isinstance(answer, CheckResult)]
    pairs = zip(there, answers, strict=True)
    facts = {host: answer for host, answer in pairs if isinstance(answer, HostReport)}
    rows += compare(facts, hosts[0], port, out)
    return rows if has_blocking_failures(rows) else [*rows, all_reduce(hosts, port)]


def examine_this(data: str | None, out: Path | None, port: int) -> list[CheckResult]:
    """The checks that make sense on this machine alone."""
    token = _write_token(out)
    try:
        facts = host_report(data, token and str(token), port)
    finally:
        if token:
            token.unlink()
    this = Host(socket.gethostname(), max(1, facts.accelerators))
    rows = compare({this: facts}, this, port, out)
    return (
        rows
        if has_blocking_failures(rows)
        else [*rows, all_reduce([], port, facts.accelerators or 2)]
    )


def has_blocking_failures(rows: Sequence[CheckResult]) -> bool:
    """Whether an all-reduce is not worth trying."""
    return any(row.remedy and row.check not in ("compilers", "clock", "data") for row in rows)


def check_ssh(host: Host) -> list[CheckResult]:
    """Whether a host answers ssh, and what its clock says."""
    before = time.time()
    done = ssh(host.name, "date +%s.%N", 30)
    after = time.time()
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        remedy = (
            f"make `ssh {host.name} true` work without a password (ssh-copy-id {host.name}; "
            "SSH_OPTIONS holds further options)"
        )
        return [CheckResult("ssh", host.name, reason, remedy)]
    theirs = float(done.stdout.split()[-1])
    # Theirs was read some time between before and after: only what lies outside is surely wrong.
    behind, ahead = before - theirs, theirs - after
    wrong = max(behind, ahead) > CLOCKS
    found = f"{max(behind, ahead):.1f} s {'behind' if behind > ahead else 'ahead'}"
    return [
        CheckResult("ssh", host.name, "answers"),
        CheckResult(
            "clock",
            host.name,
            found if wrong else f"within {CLOCKS:.0f} s",
            "set it by the network (timedatectl set-ntp true, or chrony)" if wrong else None,
        ),
    ]


def ask(host: Host, data: str | None, token: Path | None, port: int) -> HostReport | CheckResult:
    """The facts of a host over ssh; a row that says why there are none."""
    words = [sys.executable, "-m", "hpcm_scale", "doctor", "--report", "--port", str(port)]
    words += ["--data", data] if data is not None else []
    words += ["--token", str(token)] if token else []
    # From where the job will start: the data's path may be relative.
    path = f"export PATH={shlex.quote(os.environ['PATH'])}"
    done = ssh(
        host.name, f"cd {shlex.quote(str(ROOT))} && {path} && {shlex.join(words)}", REPORT_TIMEOUT
    )
    try:
        return HostReport(**json.loads(done.stdout.strip().splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        remedy = f"have this project in {ROOT} there, and run `bash launch/setup_env.sh` in it"
        return CheckResult("python", host.name, reason, remedy)


def compare(
    facts: Mapping[Host, HostReport], first: Host, port: int, out: Path | None
) -> list[CheckResult]:
    """Compare what the hosts report, each against the first that answered.

    Args:
        first: the host that keeps the job together, on `port`.
        out: the folder that was looked for, if one was.
    """
    if not facts:
        return []
    model_host, model = next(iter(facts.items()))
    rows: list[CheckResult] = []
    for host, its in facts.items():

        def add(check: str, good: bool, found: str, remedy: str, host: Host = host) -> None:
            rows.append(CheckResult(check, host.name, found, None if good else remedy))

        add(
            "python",
            its.python == model.python,
            its.python,
            f"{model_host.name} has {model.python}: remove .venv, run launch/setup_env.sh with it",
        )
        unlike = [
            f"{name} {its.packages.get(name)} (not {model.packages.get(name)})"
            for name in sorted(its.packages.keys() | model.packages.keys())
            if its.packages.get(name) != model.packages.get(name)
        ]
        more = f" and {len(unlike) - 3} more" if len(unlike) > 3 else ""
        add(
            "packages",
            not unlike,
            ", ".join(unlike[:3]) + more or f"{len(its.packages)} compared",
            "remove .venv/installed.sha256 and run `bash launch/setup_env.sh` there",
        )
        add(
            "code",
            its.code == model.code,
            its.code,
            f"bring {ROOT} to {model_host.name}'s state, {model.code}, for example by git",
        )
        if its.accelerators or model.accelerators:
            add(
                "accelerators",
                its.accelerators >= host.slots,
                f"{its.accelerators} for {host.slots} slots",
                f"write slots={its.accelerators}, or see why some are missing",
            )
        if its.data_error or its.data:
            add(
                "data",
                its.data is not None and model.data in (None, its.data),
                its.data_error or f"{its.data}",
                f"copy the dataset of {model_host.name} there, or mount it at the same path",
            )
        if out is not None:
            add(
                "run folder",
                its.sees_token,
                f"{out}: " + ("written and seen" if its.sees_token else "another folder there"),
                "mount the storage that holds it on all hosts at the same path",
            )
        if host == first:
            add(
                "port",
                its.port_free,
                f"{port} is {'free' if its.port_free else 'taken'}",
                "end what listens there, or choose another by MASTER_PORT",
            )
        add(
            "compilers",
            not its.lacks,
            f"no {', '.join(its.lacks)}" if its.lacks else "ninja, C++, libaio",
            "apt-get install g++ ninja-build libaio-dev, or what your system calls them",
        )
    return rows


def all_reduce(hosts: Sequence[Host], port: int, ranks: int = 0) -> CheckResult:
    """A sum over all ranks, started as a job is.

    Args:
        hosts: where; none for `ranks` ranks of this machine.
    """
    script = "hpcm_scale/cluster/allreduce.py"
    binaries = Path(sys.executable).parent
    environment = os.environ | {
        "MASTER_PORT": str(port),
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    with TemporaryDirectory(prefix="hpcm-doctor-") as folder:
        if hosts:
            hostfile = Path(folder) / "hostfile"
            hostfile.write_text("".join(f"{host}\n" for host in hosts))
            command = ["bash", "launch/multinode.sh", str(hostfile), script]
        else:
            command = ["deepspeed", "--quiet", "--num_accelerators", str(ranks)]
            command += ["--master_port", str(port), script]
        job = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            output, _ = job.communicate(timeout=ALL_REDUCE_TIMEOUT)
        except subprocess.TimeoutExpired:
            job.terminate()  # which ends the ranks too
            output, _ = job.communicate()
    return judge_sum(output, job.returncode, f"{len(hosts)} hosts" if hosts else "here", hosts)


def judge_sum(output: str, code: int, where: str, hosts: Sequence[Host]) -> CheckResult:
    """The outcome of an all-reduce from what its job printed."""
    remedy = (
        "set INTERFACE to the network that joins the hosts, and let no firewall close its ports"
    )
    if not hosts:
        remedy = "see what `deepspeed hpcm_scale/cluster/allreduce.py` prints"
    found = re.search(r"all-reduce: (\{.*\})", output)
    if code or not found:
        lines = [line for line in output.strip().splitlines() if "[INFO]" not in line]
        reason = lines[-1] if lines else "nothing printed"
        return CheckResult("all-reduce", where, f"exit code {code}: {reason[:200]}", remedy)
    figures = json.loads(found[1])
    text = f"{figures['ranks']} ranks, {figures['bytes_per_second'] / 1e9:.2f} GB/s"
    if figures["wrong"]:
        text = f"a wrong sum on {figures['wrong']} of {figures['ranks']} ranks"
        return CheckResult(
            "all-reduce", where, text, "test the hosts one by one: memory or network errs"
        )
    return CheckResult("all-reduce", where, text)


def table(rows: Sequence[CheckResult]) -> Table:
    """Rows by check, those without a fault on many hosts as one."""
    shown = Table("check", "host", "found", "remedy")
    for check in dict.fromkeys(row.check for row in rows):
        these = [row for row in rows if row.check == check]
        good = [row for row in these if row.remedy is None]
        if good:
            names = good[0].host if len(good) == 1 else f"{len(good)} hosts"
            shown.add_row(check, names, Text(good[0].found, "green"), "")
        for row in these:
            if row.remedy is not None:
                shown.add_row(check, row.host, Text(row.found, "red"), Text(row.remedy))
    return shown


def _write_token(out: Path | None) -> Path | None:
    """A new file in `out`, for the others to see."""
    if out is None:
        return None
    out.mkdir(parents=True, exist_ok=True)
    token = out.absolute() / f".doctor-{uuid.uuid4().hex}"
    token.touch()
    return token

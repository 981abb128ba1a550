"""Training on two hosts through the launcher, and what becomes of it when hosts fail."""

import signal
import sys
import time
from pathlib import Path

import pytest

from hpcm_scale.errors import INTERRUPTED
from tests.distributed.jobs import ROOT, command, launch, rows
from tests.hosts.network import Network, run, wait_for

pytestmark = [pytest.mark.hosts, pytest.mark.distributed, pytest.mark.slow]


def losses(out: Path) -> dict[int, float]:
    """By step."""
    return {row["step"]: row["loss"] for row in rows(out, "train")}


@pytest.fixture(scope="module")
def one_host(tmp_path_factory, dataset) -> Path:
    """A run of two ranks on one host."""
    out = tmp_path_factory.mktemp("one")
    done = launch(out, dataset, 2)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_two_hosts_over_ssh_give_the_losses_of_one(network: Network, one_host, dataset, tmp_path):
    script = command(tmp_path, dataset, 1)[1:]
    done = network.run("bash", "launch/multinode.sh", network.hostfile, *script)
    assert done.returncode == 0, done.output()
    for kind in ("train", "val"):
        expected = [row["loss"] for row in rows(one_host, kind)]
        assert [row["loss"] for row in rows(tmp_path, kind)] == pytest.approx(expected, rel=1e-6)


def test_two_hosts_without_ssh_give_the_losses_of_one(
    network: Network, one_host, dataset, tmp_path
):
    script = command(tmp_path, dataset, 1)[1:]
    where = {"HOSTS": " ".join(host.address for host in network.hosts), "SLOTS": "1"}
    jobs = [
        # INTERFACE is left to launch/env.sh: each host finds its own.
        network.begin(
            *("bash", "launch/no_ssh.sh", *script),
            host=host,
            HOST_RANK=str(number),
            INTERFACE="",
            **where,
        )
        for number, host in enumerate(network.hosts)
    ]
    for job in jobs:
        assert job.wait(timeout=300) == 0, "".join(job.output() for job in jobs)
    assert losses(tmp_path) == pytest.approx(losses(one_host), rel=1e-6)


def test_hosts_whose_own_names_are_127_0_1_1_find_each_other(
    network: Network, one_host, dataset, tmp_path
):
    """Debian's default, which makes the loopback of what gloo would take by itself."""
    script = command(tmp_path, dataset, 1)[1:]
    where = {"HOSTS": " ".join(host.name for host in network.hosts), "SLOTS": "1"}
    for own in network.hosts:
        lines = ["127.0.0.1 localhost"]
        lines += [
            f"{'127.0.1.1' if host is own else host.address} {host.name}" for host in network.hosts
        ]
        names = tmp_path / f"hosts-{own.name}"
        names.write_text("\n".join(lines) + "\n")
        inside = ("nsenter", "-t", own.first.pid, "--mount", "--pid")
        run(*inside, "mount", "--bind", names, "/etc/hosts")
    try:
        jobs = [
            network.begin(
                *("nsenter", "-t", host.first.pid, "--mount", "--pid", f"--wd={ROOT}"),
                *("bash", "launch/no_ssh.sh", *script),
                host=host,
                HOST_RANK=str(number),
                INTERFACE="",
                **where,
            )
            for number, host in enumerate(network.hosts)
        ]
        for job in jobs:
            assert job.wait(timeout=300) == 0, "".join(job.output() for job in jobs)
    finally:
        for host in network.hosts:
            run("nsenter", "-t", host.first.pid, "--mount", "--pid", "umount", "/etc/hosts")
    assert losses(tmp_path) == pytest.approx(losses(one_host), rel=1e-6)


def test_a_port_in_use_on_the_first_host_is_named_in_one_line(network: Network, dataset, tmp_path):
    listen = "import socket, time; s = socket.create_server(('', 29500)); print(1, flush=True); "
    taken = network.begin(sys.executable, "-c", f"{listen} time.sleep(600)", host=network.hosts[0])
    try:
        wait_for(taken.output)
        script = command(tmp_path, dataset, 1)[1:]
        done = network.run("bash", "launch/multinode.sh", network.hostfile, *script)
    finally:
        taken.kill()
    assert done.returncode == 2, done.output()
    (line,) = done.output().splitlines()
    assert "MASTER_PORT: 29500 is in use on 10.211.0.1" in line


def test_a_failing_rank_of_another_host_ends_the_job(network: Network, dataset, tmp_path):
    """The data of the second host alone is gone."""
    script = command(tmp_path, dataset, 1)[1:]
    in_b = ["nsenter", "-t", network.hosts[1].first.pid, "--mount"]
    run(*in_b, "mount", "-t", "tmpfs", "none", dataset)
    try:
        begun = time.monotonic()
        done = network.run("bash", "launch/multinode.sh", network.hostfile, *script)
    finally:
        run(*in_b, "umount", dataset)
    assert done.returncode == 2, done.output()
    assert f"train: rank 1: {dataset}" in done.output()
    assert time.monotonic() - begun < 120  # guard.timeout is 600


@pytest.mark.long
def test_a_supervised_run_survives_lost_hosts_and_ranks(network: Network, dataset, tmp_path):
    a, b = network.hosts
    changes = ["steps=4000", "checkpoint.every=1", "validate_every=4000"]
    changes += ["optimizer.decay_fraction=0"]  # losses must not depend on the length
    faulty = tmp_path / "faulty"
    arguments = command(faulty, dataset, 1, *changes, resume="auto")[2:]
    job = network.begin("bash", "launch/supervise.sh", network.hostfile, *arguments)

    def after(number: int) -> int:
        """Wait for a step after step `number`; returns the newest."""

        def newest() -> int:
            assert job.poll() is None, job.output()
            made = (faulty / "small" / "metrics.jsonl").exists() and losses(faulty)
            return max(made) if made else 0

        wait_for(lambda: newest() > number)
        return newest()

    # The cable of one host is pulled: the job ends on both, and says why.
    step = after(1)
    lost = [*a.ranks(), *b.ranks()]
    assert len(lost) == 2
    b.cut()
    try:
        cut = time.monotonic()
        wait_for(lambda: not any(process.is_running() for process in lost))
        assert time.monotonic() - cut < 120
        assert "the job is lost: rank 1 on hpcm-b" in job.output()
        # It goes on with the host that is left.
        step = after(step)
        assert f"without {b.address}: no answer over ssh" in job.output()
        assert len(a.ranks()) == 1
    finally:
        b.join()

    # That host's ranks are killed, and the other host is back: on with both.
    for process in a.ranks():
        process.kill()
    step = after(step)
    assert len(a.ranks()) == len(b.ranks()) == 1

    # Told to stop, the job saves and is not started again.
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=120) == INTERRUPTED, job.output()
    assert not a.ranks()
    assert not b.ranks()

    done = losses(faulty)
    whole = tmp_path / "whole"
    ended = launch(whole, dataset, 2, *changes, f"steps={len(done)}")
    assert ended.returncode == 0, ended.stderr
    assert list(done) == list(range(1, len(done) + 1))
    assert done == pytest.approx(losses(whole), rel=1e-5)

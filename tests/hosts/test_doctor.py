"""The doctor on two hosts: what suits, and real faults by name."""

import sys
from pathlib import Path

import pytest

from hpcm_scale.cluster.host_report import missing_tools
from tests.distributed.jobs import BIN
from tests.hosts.network import Job, Network, run, wait_for

pytestmark = [pytest.mark.hosts, pytest.mark.distributed, pytest.mark.slow]

PORT = 29611
LISTEN = """
import socket, time
held = socket.create_server(("", {}))
print("listening", flush=True)
time.sleep(600)
"""


def doctor(network: Network, dataset: Path, out: Path) -> Job:
    """Its outcome, on lines that do not wrap."""
    options = ["--hostfile", network.hostfile, "--data", dataset, "--out", out, "--port", PORT]
    job = network.begin(BIN / "hpcm-scale", "doctor", *options, COLUMNS="300")
    job.wait(timeout=300)
    return job


def test_two_hosts_that_suit_each_other_add_up_a_vector(network: Network, dataset, tmp_path):
    job = doctor(network, dataset, tmp_path / "runs")
    output = job.output()
    assert "2 ranks, " in output, output
    assert "GB/s" in output
    assert job.returncode == (1 if missing_tools() else 0), output
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_taken_port_and_missing_data_are_named(network: Network, dataset, tmp_path):
    a, b = network.hosts
    out = tmp_path / "runs"
    out.mkdir()
    listener = network.begin(sys.executable, "-c", LISTEN.format(PORT), host=a)
    in_b = ["nsenter", "-t", b.first.pid, "--mount"]
    hidden = [out, dataset]
    try:
        for folder in hidden:
            run(*in_b, "mount", "-t", "tmpfs", "none", folder)
        wait_for(lambda: listener.output())
        job = doctor(network, dataset, out)
    finally:
        listener.kill()
        for folder in hidden:
            run(*in_b, "umount", folder)
    faults = {
        (words[1].strip(), words[2].strip())
        for words in (line.split("│") for line in job.output().splitlines())
        if len(words) > 4 and words[4].strip() and words[1].strip() != "compilers"
    }
    assert faults == {("port", a.address), ("data", b.address), ("run folder", b.address)}
    assert job.returncode == 1


def test_a_host_that_is_cut_off_is_named(network: Network, dataset, tmp_path):
    b = network.hosts[1]
    b.cut()
    try:
        job = doctor(network, dataset, tmp_path)
    finally:
        b.join()
    lines = [line for line in job.output().splitlines() if b.address in line]
    assert len(lines) == 1, job.output()
    assert "ssh-copy-id" in lines[0]
    assert job.returncode == 1

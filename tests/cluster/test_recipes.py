"""The recipes in launch/, as far as they go without the clusters they are for."""

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.distributed.conftest import dataset
from tests.distributed.jobs import ROOT, command, environment

__all__ = ["dataset"]

# Slurm's part: starts a task for each rank, and gives the highest exit code.
SRUN = """#!/usr/bin/env bash
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & done
code=0
for job in $(jobs -p); do wait $job || { c=$?; [ $c -gt $code ] && code=$c; }; done
exit $code
"""


def slurm(tmp_path: Path, srun: str, *arguments: str, **extra: str) -> tuple[int, str, str]:
    """Run the batch script beside stand-ins for Slurm's commands.

    Returns:
        its exit code, what it asked scontrol for, and what it said.
    """
    asked = tmp_path / "asked"
    asked.write_text("")
    programs = {
        "srun": srun,
        "scontrol": f'#!/bin/sh\n[ "$1" = show ] && echo 127.0.0.1 || echo "$@" >> {asked}\n',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    given = environment() | {
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
    }
    given["PATH"] = f"{tmp_path}:{given['PATH']}"
    done = subprocess.run(
        ["bash", "launch/slurm.sbatch", *arguments],
        cwd=ROOT,
        env=given | extra,
        capture_output=True,
        text=True,
        timeout=600,
    )
    print(done.stdout, done.stderr)
    return done.returncode, asked.read_text(), done.stderr


@pytest.mark.distributed
@pytest.mark.slow
def test_tasks_of_slurm_become_the_ranks_of_one_run(tmp_path, dataset):
    out = tmp_path / "out"
    code, asked, _ = slurm(tmp_path, SRUN, *command(out, dataset, 1, "steps=1")[2:])
    assert (code, asked) == (0, "")
    assert json.loads((out / "small" / "run.json").read_text())["sessions"][0]["world_size"] == 2


@pytest.mark.parametrize(
    ("code", "restarts", "requeued", "says"),
    [
        (75, 0, True, "put back into the queue (1 of RESTARTS=20)"),
        (76, 19, True, "put back into the queue (20 of RESTARTS=20)"),
        (76, 20, False, "given up: it has been put back RESTARTS=20 times"),
        (2, 0, False, ""),
        (0, 0, False, ""),
    ],
)
def test_slurm_puts_back_what_another_try_can_finish(tmp_path, code, restarts, requeued, says):
    srun = f"#!/bin/sh\nexit {code}\n"
    ended, asked, said = slurm(tmp_path, srun, SLURM_RESTART_COUNT=str(restarts))
    assert ended == code
    assert asked == (f"requeue {os.getpid()}\n" if requeued else "")
    assert says in said


def test_tasks_of_slurm_get_their_cores_and_a_free_port(tmp_path):
    """Since Slurm 22.05 srun does not take --cpus-per-task over from the batch script."""
    srun = f'#!/bin/sh\necho "$@" > {tmp_path}/words; echo $MASTER_PORT > {tmp_path}/port\n'
    slurm(tmp_path, srun, SLURM_CPUS_PER_TASK="12")
    assert (tmp_path / "words").read_text().startswith("--cpus-per-task=12 bash -c")
    with socket.create_server(("", int((tmp_path / "port").read_text()))):
        pass  # nothing else has it
    slurm(tmp_path, srun)
    assert (tmp_path / "words").read_text().startswith("bash -c")


def test_no_recipe_takes_the_interface_of_one_host_for_all():
    """Each rank finds its own, unless INTERFACE says otherwise."""
    show = "source launch/env.sh; echo ${GLOO_SOCKET_IFNAME-none} ${NCCL_SOCKET_IFNAME-none}"
    for interface, expected in (("", "none none"), ("ib0", "ib0 ib0")):
        given = {"MASTER_ADDR": "localhost", "INTERFACE": interface}
        done = subprocess.run(
            ["bash", "-c", show],
            cwd=ROOT,
            env=environment() | given,
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == expected


def test_the_kubernetes_job_names_a_host_for_each_of_its_pods():
    service, job = yaml.safe_load_all((ROOT / "launch" / "kubernetes.yaml").read_text())
    spec = job["spec"]
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    domain = service["metadata"]["name"]
    assert pod["subdomain"] == domain
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    names = [f"{job['metadata']['name']}-{i}.{domain}" for i in range(spec["completions"])]
    assert values["HOSTS"].split() == names
    assert spec["parallelism"] == spec["completions"]
    assert int(values["SLOTS"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    files = [word for word in container["command"] if "/" in word]
    assert all((ROOT / name).is_file() for name in files)

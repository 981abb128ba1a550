"""Hosts that are namespaces of this machine: own network, processes, name and sshd; shared files.

Everything hangs on processes that the kernel ends with this one, and the namespaces, the veth
pairs and the bridge are gone with the last process inside them. Nothing has a name outside, and
the machine's own network is never touched.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.distributed.jobs import BIN, ROOT

PROGRAMS = ("ip", "unshare", "nsenter", "setpriv", "ssh", "ssh-keygen", "sshd", "pdsh")


def missing() -> str | None:
    """Why this machine cannot have such hosts; None if it can."""
    if os.geteuid() != 0:
        return "needs root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"needs {', '.join(absent)} (.ci/run installs them)"
    probe = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--uts", "ip", "link"]
    done = subprocess.run(
        [*probe, "add", "x", "type", "veth", "peer", "name", "y"], capture_output=True, text=True
    )
    return f"namespaces: {done.stderr.strip()}" if done.returncode else None


def run(*command: object) -> None:
    """Run a command that has to succeed."""
    subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)


def start(*command: object) -> subprocess.Popen:
    """A process that ends when this one does."""
    return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *map(str, command)])


class Host:
    """One host: `name` is its hostname, `address` what the others reach it by."""

    def __init__(self, network: "Network", name: str, number: int) -> None:
        self.network, self.name, self.address = network, name, f"10.211.0.{number}"
        self.port = f"port{number}"
        self.boot()

    def boot(self) -> None:
        """Start it: the network, and an sshd as its first process."""
        folder = self.network.folder
        config = f"/usr/sbin/sshd -D -e -f {folder}/sshd_config -E {folder}/{self.name}.log"
        self.process = start(
            *("unshare", "--net", "--pid", "--fork", "--mount-proc", "--uts", "--kill-child"),
            *("sh", "-c", f"hostname {self.name} && exec {config}"),
        )
        self.network.processes.append(self.process)
        wait_for(lambda: psutil.Process(self.process.pid).children())
        self.first = psutil.Process(self.process.pid).children()[0]
        switch = self.network.inside
        run(*switch, "ip", "link", "add", self.port, "type", "veth")
        run(*switch, "ip", "link", "set", "veth0", "netns", self.process.pid, "name", "eth0")
        run(*switch, "ip", "link", "set", self.port, "master", "br0", "up")
        for words in ("link set lo up", f"addr add {self.address}/24 dev eth0", "link set eth0 up"):
            run(*self.inside, "ip", *words.split())

    @property
    def inside(self) -> list[str]:
        """Before a command: runs it on this host's network."""
        return ["nsenter", "-t", str(self.process.pid), "--net", "--uts"]

    def ranks(self) -> list[psutil.Process]:
        """The training processes it runs."""
        found = []
        for process in self.first.children(recursive=True):
            try:
                words = process.cmdline()
            except psutil.NoSuchProcess:
                continue
            if any(w.startswith("--local_rank") for w in words) and "launch/train.py" in words[:3]:
                found.append(process)
        return found

    def cut(self) -> None:
        """Pull its cable out."""
        run(*self.network.inside, "ip", "link", "set", self.port, "down")

    def join(self) -> None:
        """Put it back."""
        run(*self.network.inside, "ip", "link", "set", self.port, "up")


class Network:
    """A switch with a machine to launch from, and hosts on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hostfile = folder / "hostfile"
        self.hosts: list[Host] = []
        self.processes: list[subprocess.Popen] = []

    def build(self, names: list[str]) -> None:
        """Start the switch and a host by each name."""
        folder = self.folder
        os.makedirs("/run/sshd", exist_ok=True)  # sshd insists on it
        self.switch = start("unshare", "--net", "sleep", "infinity")
        self.processes.append(self.switch)
        self.inside = ["nsenter", "-t", str(self.switch.pid), "--net"]
        own = os.readlink("/proc/self/ns/net")
        wait_for(lambda: os.readlink(f"/proc/{self.switch.pid}/ns/net") != own)
        for words in (
            "link set lo up",
            "link add br0 type bridge",
            "addr add 10.211.0.254/24 dev br0",
            "link set br0 up",
        ):
            run(*self.inside, "ip", *words.split())
        for key in ("host_key", "key"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key)
        shutil.copy(folder / "key.pub", folder / "authorized_keys")
        (folder / "sshd_config").write_text(
            f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized_keys\n"
            "StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin prohibit-password\n"
        )
        self.hosts += [Host(self, name, number) for number, name in enumerate(names, 1)]
        self.hostfile.write_text("".join(f"{host.address} slots=1\n" for host in self.hosts))
        for host in self.hosts:
            wait_for(
                lambda host=host: self.run("ssh", *self.ssh, host.address, "true").returncode == 0
            )

    @property
    def ssh(self) -> list[str]:
        known = f"-o UserKnownHostsFile={self.folder}/known -o StrictHostKeyChecking=no"
        return ["-F", "none", "-i", f"{self.folder}/key", *known.split(), "-o", "LogLevel=ERROR"]

    @property
    def environment(self) -> dict[str, str]:
        """Of the machine to launch from."""
        return os.environ | {
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{BIN}:/usr/sbin:{os.environ['PATH']}",
            "SSH_OPTIONS": " ".join(self.ssh),
            "INTERFACE": "eth0",
            "PAUSE": "2",
            "RESTARTS": "3",
        }

    def begin(self, *command: object, host: Host | None = None, **extra: str) -> "Job":
        """Start a command on the machine to launch from, or on the network of a host."""
        log = self.folder / f"job-{len(self.processes)}.log"
        job = Job(
            ["setpriv", "--pdeathsig", "KILL", *(host or self).inside, *map(str, command)],
            cwd=ROOT,
            env=self.environment | extra,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        job.log = log
        self.processes.append(job)
        return job

    def run(self, *command: object) -> "Job":
        """A command on the machine to launch from, ended."""
        job = self.begin(*command)
        job.wait(timeout=300)
        return job


class Job(subprocess.Popen):
    """A command whose output goes to a file, so that nobody has to read along."""

    log: Path

    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text()


@contextmanager
def network(folder: Path, names: list[str]) -> Iterator[Network]:
    """Hosts by these names while the block runs."""
    made = Network(folder)
    try:
        made.build(names)
        yield made
    finally:
        for process in made.processes:
            process.kill()  # and with it, by --kill-child, the first process of the host
            process.wait()


def wait_for(condition) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited in vain")

"""Where the ranks of a job meet: its key-value store, and the network they then talk over."""

import os
import socket
from datetime import timedelta

import psutil
from torch.distributed import DistError, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from hpcm_scale.errors import ConfigError

PEER = "hpcm/peer"
"""Key of the store under which a rank that is not on the first host leaves its address."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Values of MASTER_ADDR that say that there is one host."""
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Variables that name the network interface to gloo and NCCL."""


def describe_job() -> tuple[int, int]:
    """Rank and world size that the launcher gave this process; by default a job of one."""
    for name, value in (
        ("RANK", "0"),
        ("LOCAL_RANK", "0"),
        ("WORLD_SIZE", "1"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "0"),  # any free one: only this process looks for it
    ):
        os.environ.setdefault(name, value)
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def local_size() -> int:
    """Ranks of this job on this host: LOCAL_SIZE of deepspeed, or torchrun's LOCAL_WORLD_SIZE."""
    return int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or "1")


def collective_timeout(stall_timeout: float) -> float:
    """Seconds after which a collective operation may fail: later than the watchdog, which knows the
    rank that is waited for, ends a job that stays at one point for `stall_timeout`."""
    return 1.2 * stall_timeout + 60


def check_device(local_rank: int, devices: int, visible: str | None) -> None:
    """
    Args:
        local_rank: of the rank among those of its host.
        devices: GPUs that it sees.
        visible: its CUDA_VISIBLE_DEVICES.

    Raises:
        ConfigError: unless it sees a GPU of that number, which one that is shown its own alone
            does not.
    """
    if local_rank < devices:
        return
    shown = "no CUDA_VISIBLE_DEVICES" if visible is None else f"CUDA_VISIBLE_DEVICES={visible}"
    raise ConfigError(
        f"LOCAL_RANK: {local_rank} of {socket.gethostname()} sees {devices} "
        f"GPU{'s' * (devices != 1)} ({shown}); show every rank all GPUs of its host (Slurm: "
        "--gpus-per-node, not --gpus-per-task), or start fewer ranks"
    )


def open_store(timeout: float) -> TCPStore:
    """The job's store, kept by rank 0 for as long as it holds this object or one like it.

    Args:
        timeout: seconds to wait for rank 0 to be there.

    Raises:
        ConfigError: on rank 0, if the port is taken; on the others, if rank 0 cannot be reached.
    """
    rank, world = describe_job()
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        return TCPStore(
            address,
            port,
            world,
            is_master=rank == 0,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout),
            multi_tenant=True,  # torch's own rendezvous in this process shares the server
        )
    except (DistError, RuntimeError) as error:
        if "EADDRINUSE" in str(error):
            raise ConfigError(
                f"MASTER_PORT: {port} is in use on {socket.gethostname()}; set it to a free port"
            ) from None
        reason = str(error).splitlines()[0].split(". ")[0][:160]
        raise ConfigError(
            f"MASTER_ADDR: the first host, {address} port {port}, cannot be reached from "
            f"{socket.gethostname()} ({reason})"
        ) from None


def choose_interface(store: TCPStore, timeout: float) -> None:
    """Have gloo and NCCL use the network that joins this host to the others of the job.

    Left to itself gloo takes the address of the host's own name, which is the loopback on many
    systems (127.0.1.1 on Debian), and no other host can reach it. The way to the first host tells
    the network; on the first host itself, whose own name may be such an address, the way to
    another. Nothing is done where the environment names an interface already, or on a single host.
    """
    world, address = int(os.environ["WORLD_SIZE"]), os.environ["MASTER_ADDR"]
    if world <= local_size() or address in LOOPBACK or any(n in os.environ for n in INTERFACES):
        return
    mine = address_towards(address)
    if mine.startswith("127."):
        store.set_timeout(timedelta(seconds=timeout))
        mine = address_towards(store.get(PEER).decode())
    else:
        store.set(PEER, mine)
    interface = interface_of(mine)
    if interface is not None:
        for name in INTERFACES:
            os.environ[name] = interface


def address_towards(host: str) -> str:
    """This host's own address on the way to another; no packet is sent.

    Raises:
        ConfigError: if there is no way.
    """
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(where)
            return probe.getsockname()[0]
    except OSError as error:
        raise ConfigError(
            f"MASTER_ADDR: {host} cannot be reached from {socket.gethostname()} ({error.strerror})"
        ) from None


def interface_of(address: str) -> str | None:
    """The network interface that has an address of this host."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in addresses):
            return name
    return None


def free_port() -> int:
    """A TCP port of this host that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

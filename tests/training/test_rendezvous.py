"""Where ranks meet, and the network they choose."""

import os
import socket
import subprocess
import sys

import psutil
import pytest

from hpcm_scale.errors import ConfigError
from hpcm_scale.training import rendezvous
from hpcm_scale.training.rendezvous import (
    address_towards,
    check_device,
    choose_interface,
    free_port,
    interface_of,
    open_store,
)


@pytest.fixture
def job(monkeypatch):
    """Sets variables of a job, and forgets what choosing an interface adds to them."""

    def describe(**variables: object) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    for name in (*rendezvous.INTERFACES, "LOCAL_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    describe(RANK=0, LOCAL_RANK=0, WORLD_SIZE=2, LOCAL_SIZE=1, MASTER_ADDR="127.0.0.1")
    return describe


def test_a_port_in_use_is_named_in_one_line(job):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        job(MASTER_PORT=port)
        with pytest.raises(ConfigError) as caught:
            open_store(5)
    assert str(caught.value).startswith(f"MASTER_PORT: {port} is in use on {socket.gethostname()}")
    assert "\n" not in str(caught.value)


def test_a_first_host_that_is_not_there_is_named_in_one_line(job):
    job(RANK=1, MASTER_PORT=free_port())
    with pytest.raises(ConfigError) as caught:
        open_store(1)
    assert str(caught.value).startswith("MASTER_ADDR: the first host, 127.0.0.1 port ")
    assert "\n" not in str(caught.value)


def test_the_way_to_oneself_is_the_loopback():
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") is None


@pytest.mark.parametrize("name", ["no.such.host.invalid"])
def test_a_name_without_an_address_is_refused(name):
    with pytest.raises(ConfigError, match=f"MASTER_ADDR: {name} cannot be reached"):
        address_towards(name)


class Store:
    """Stands in for the job's store: one key."""

    def __init__(self, peer: str) -> None:
        self.peer, self.left = peer, {}

    def set(self, key: str, value: str) -> None:
        self.left[key] = value

    def get(self, key: str) -> bytes:
        assert key == rendezvous.PEER
        return self.peer.encode()

    def set_timeout(self, _: object) -> None:
        pass


def own_address() -> tuple[str, str]:
    """An address of this machine that is not the loopback, and its interface."""
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family == socket.AF_INET and not entry.address.startswith("127."):
                return entry.address, name
    pytest.skip("this machine has the loopback alone")


def test_a_host_takes_the_interface_that_leads_to_the_first(job):
    address, name = own_address()
    job(MASTER_ADDR=address)
    store = Store("")
    choose_interface(store, 5)
    assert [os.environ[variable] for variable in rendezvous.INTERFACES] == [name, name]
    assert store.left == {rendezvous.PEER: address}


def test_a_first_host_called_127_0_1_1_asks_for_another(job, monkeypatch):
    """Debian gives a host's own name that address, which no other host can reach."""
    address, name = own_address()
    real = address_towards
    monkeypatch.setattr(
        rendezvous, "address_towards", lambda host: "127.0.0.1" if host == "node-0" else real(host)
    )
    job(MASTER_ADDR="node-0")
    choose_interface(Store(address), 5)
    assert os.environ["GLOO_SOCKET_IFNAME"] == name


@pytest.mark.parametrize(
    "variables",
    [
        {"LOCAL_SIZE": 2},  # all ranks are on this host
        {"MASTER_ADDR": "127.0.0.1"},
        {"MASTER_ADDR": "node-0", "GLOO_SOCKET_IFNAME": "ib0"},
    ],
)
def test_nothing_is_chosen_where_there_is_nothing_to_choose(job, variables):
    job(**variables)
    before = dict(os.environ)
    choose_interface(Store("203.0.113.7"), 5)
    assert dict(os.environ) == before


def test_ranks_that_meet_twice_share_one_server(job):
    """The watchdog opens the store first, torch's own rendezvous after it."""
    code = (
        "import torch\n"
        "from hpcm_scale.training.rendezvous import open_store\n"
        "store = open_store(30)\n"
        "torch.distributed.init_process_group('gloo')\n"
        "total = torch.ones(1)\n"
        "torch.distributed.all_reduce(total)\n"
        "assert total.item() == 2\n"
        "torch.distributed.barrier()\n"
        "import os; os._exit(0)\n"
    )
    given = os.environ | {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", code], env=given | {"RANK": str(rank)})
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]


def test_a_rank_that_sees_too_few_gpus_is_refused():
    for devices, visible in ((8, None), (4, "4,5,6,7")):
        check_device(3, devices, visible)
    with pytest.raises(
        ConfigError, match=r"LOCAL_RANK: 3 .* sees 1 GPU \(CUDA_VISIBLE_DEVICES=3\)"
    ):
        check_device(3, 1, "3")
    with pytest.raises(ConfigError, match=r"sees 2 GPUs \(no CUDA_VISIBLE_DEVICES\)"):
        check_device(2, 2, None)

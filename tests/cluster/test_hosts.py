"""Hostfiles, and which hosts a run can go on with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcm_scale.cluster.available_hosts import shareable_hosts
from hpcm_scale.cluster.hosts import Host, read_hostfile
from hpcm_scale.config import RunConfig
from hpcm_scale.errors import ConfigError, HpcmError
from hpcm_scale.training.engine import deepspeed_config


def test_a_hostfile_is_read_as_the_launcher_reads_it(tmp_path):
    from deepspeed.launcher.runner import fetch_hostfile

    path = tmp_path / "hostfile"
    path.write_text("# two\nnode-0 slots=8\n\n10.0.0.2   slots=4\n")
    hosts = read_hostfile(path)
    assert {host.name: host.slots for host in hosts} == fetch_hostfile(str(path))
    path.write_text("".join(f"{host}\n" for host in hosts))
    assert read_hostfile(path) == hosts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no host"),
        ("node-0\n", ":1: 'node-0' is not a host"),
        ("a slots=1\na slots=2\n", ":2: a is there twice"),
        ("-oProxyCommand=x slots=1\n", "is not a host"),
        ("a slots=0\n", "is not a host"),
    ],
)
def test_a_wrong_hostfile_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "hostfile"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_hostfile(path)


def run_of(batch: int, micro_batch: int | None, streams: int, workers: int) -> RunConfig:
    data = {"train": "x", "streams": streams, "workers": workers}
    micro = {} if micro_batch is None else {"micro_batch": micro_batch}
    settings = {"name": "x", "model": {"variant": "base"}, "steps": 1, "batch": batch}
    return RunConfig.model_validate(settings | micro | {"data": data})


@given(
    slots=st.lists(st.integers(1, 8), min_size=1, max_size=8),
    batch=st.integers(1, 64),
    micro_batch=st.none() | st.integers(1, 4),
    workers=st.integers(0, 4),
)
def test_the_hosts_chosen_are_the_most_that_the_trainer_accepts(slots, batch, micro_batch, workers):
    hosts = [Host(f"h{number}", n) for number, n in enumerate(slots)]
    run = run_of(batch, micro_batch, 64, workers)

    def accepted(number: int) -> bool:
        ranks = sum(slots[:number])
        try:
            deepspeed_config(run, ranks)
        except HpcmError:
            return False
        return 64 % (ranks * max(workers, 1)) == 0

    possible = [number for number in range(1, len(hosts) + 1) if accepted(number)]
    assert len(shareable_hosts(hosts, run)) == max(possible, default=0)

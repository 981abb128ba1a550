"""What the doctor makes of hosts that differ."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hpcm_scale.cluster.doctor import compare, judge_sum
from hpcm_scale.cluster.host_report import (
    HostReport,
    code_digest,
    data_fingerprint,
    host_report,
    is_free,
)
from hpcm_scale.cluster.hosts import Host
from hpcm_scale.errors import DataError
from tests.distributed.conftest import dataset

__all__ = ["dataset"]

A, B = Host("a", 8), Host("b", 8)
GOOD = HostReport(
    python="3.11.2 /p",
    packages={"torch": "2.13.0", "numpy": "2.4.6"},
    code="c0de",
    accelerators=8,
    port_free=True,
    lacks=[],
    data="train 1",
    data_error=None,
    sees_token=True,
)


def faults(its: HostReport) -> list[tuple[str, str]]:
    rows = compare({A: GOOD, B: its}, A, 29500, Path("runs"))
    return [(row.check, row.host) for row in rows if row.remedy]


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"python": "3.12.0 /p"}, "python"),
        ({"packages": {"torch": "2.12.0", "numpy": "2.4.6"}}, "packages"),
        ({"packages": {"torch": "2.13.0"}}, "packages"),
        ({"code": "0ld"}, "code"),
        ({"accelerators": 7}, "accelerators"),
        ({"data": "train 2"}, "data"),
        ({"data": None, "data_error": "no manifest"}, "data"),
        ({"sees_token": False}, "run folder"),
        ({"lacks": ["ninja"]}, "compilers"),
    ],
)
def test_a_difference_is_a_fault_of_that_host_and_check_alone(change, check):
    assert faults(GOOD) == []
    assert faults(replace(GOOD, **change)) == [(check, "b")]


def test_only_the_first_hosts_port_matters():
    assert faults(replace(GOOD, port_free=False)) == []
    rows = compare({A: replace(GOOD, port_free=False), B: GOOD}, A, 29500, None)
    assert [(row.check, row.host) for row in rows if row.remedy] == [("port", "a")]


def test_this_machine_tells_its_facts(tmp_path):
    import socket

    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        facts = host_report(str(tmp_path / "none"), str(tmp_path), port)
        assert not facts.port_free
    assert is_free(port)
    assert "manifest" in facts.data_error
    assert facts.sees_token
    assert facts.packages["hypothesis"]


def test_equal_digests_mean_equal_samples(dataset, tmp_path):
    first = data_fingerprint(str(dataset))
    assert "train " in first
    assert "val " in first
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    assert data_fingerprint(str(copy)) == first
    text = (copy / "manifest.json").read_text()
    shard = json.loads(text)["shards"][0]["sha256"]
    (copy / "manifest.json").write_text(text.replace(shard, shard[::-1]))
    assert data_fingerprint(str(copy)) != first
    next(copy.glob("**/*.tar")).unlink()
    with pytest.raises(DataError):
        data_fingerprint(str(copy))


def test_any_changed_file_changes_the_digest(tmp_path):
    source = tmp_path / "hpcm_scale" / "models" / "x.py"
    source.parent.mkdir(parents=True)
    source.write_text("a = 1")
    first = code_digest(tmp_path)
    source.write_text("a = 2")
    second = code_digest(tmp_path)
    source.rename(source.with_name("y.py"))
    assert len({first, second, code_digest(tmp_path)}) == 3


def test_a_wrong_sum_and_a_failed_job_are_faults():
    line = 'a: all-reduce: {{"ranks": 4, "wrong": {}, "bytes_per_second": 2e9}}\n'
    assert judge_sum(line.format(0), 0, "2 hosts", [A, B]).remedy is None
    assert "1 of 4 ranks" in judge_sum(line.format(1), 0, "2 hosts", [A, B]).found
    row = judge_sum("a: [INFO] x\nb: gloo timed out\n", 76, "2 hosts", [A, B])
    assert "gloo timed out" in row.found
    assert row.remedy

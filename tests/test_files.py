"""Files appear whole or not at all."""

import os
import stat

import pytest

from hpcm_scale.files import atomic_path, atomic_write


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    atomic_write(target, "old")

    def interrupted() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_written_file_has_the_mode_of_a_new_one(tmp_path):
    atomic_write(tmp_path / "deep/er/a.bin", b"\0new")
    (tmp_path / "plain").touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("deep/er/a.bin", "plain")]
    assert modes[0] == modes[1]
    assert (tmp_path / "deep/er/a.bin").read_bytes() == b"\0new"


def test_the_temporary_file_keeps_the_suffix(tmp_path):
    with atomic_path(tmp_path / ("x" * 250 + ".png")) as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == tmp_path

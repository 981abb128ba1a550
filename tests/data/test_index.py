"""Tars made elsewhere, damaged datasets, and what verify and inspect say about them."""

import json
import os
import re
import shutil
import sys
import tarfile
from io import BytesIO
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hpcm_scale import cli
from hpcm_scale.config import DataConfig
from hpcm_scale.data.images import decode_whole
from hpcm_scale.data.index import index
from hpcm_scale.data.manifest import Manifest
from hpcm_scale.data.shards import read_manifest, scan_tar
from hpcm_scale.data.stream import TrainStream, read_images
from hpcm_scale.data.verify import verify
from hpcm_scale.errors import DataError


def write_tar(path: Path, members: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content), kind
            tar.addfile(info, BytesIO(content))
    return path


@pytest.fixture
def downloaded(tmp_path, make_picture, encode) -> Path:
    """What img2dataset leaves: NNNNN.tar of jpg, json and txt, with parquet and stats beside."""
    root = tmp_path / "downloaded"
    for shard in range(3):
        members = {}
        for number in range(6):
            key = f"{shard:05d}{number:04d}"
            image = make_picture(10 * shard + number, 44, 33)
            formats = [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")]
            suffix, file_format = formats[number % 3]
            members[f"{key}.{suffix}"] = encode(image, file_format)
            members[f"{key}.json"] = json.dumps({"url": "http://x", "key": key}).encode()
            members[f"{key}.txt"] = b"a photo"
        members["a/" + "long" * 60 + ".png"] = encode(make_picture(99), "PNG")
        members["only.json"] = b"{}"
        members["broken.jpg"] = b"not an image"
        members["tiny.png"] = encode(make_picture(1, 10, 10), "PNG")
        write_tar(root / f"{shard:05d}.tar", members)
        (root / f"{shard:05d}_stats.json").write_text("{}")
        (root / f"{shard:05d}.parquet").write_bytes(b"PAR1")
    return root


def test_tars_of_another_tool_stream_without_being_rewritten(downloaded, make_picture):
    before = {path: path.read_bytes() for path in downloaded.iterdir()}
    manifest = index(downloaded, val="00002.tar", min_side=24, jobs=2)
    assert (manifest.report["found"], manifest.report["packed"]) == (27, 21)
    assert manifest.report["skipped"] == {"corrupt": 3, "tiny": 3}
    assert manifest.totals()["train"]["samples"] == 14
    assert manifest.totals()["val"]["samples"] == 7
    assert {path: path.read_bytes() for path in before} == before
    assert verify(str(downloaded), jobs=1) == []
    for image in read_images(str(downloaded), "train"):
        shard, number = divmod(int(image.key), 10_000) if image.key.isdecimal() else (0, 0)
        if number % 3 == 1:  # the PNGs
            expected = make_picture(10 * shard + number, 44, 33)
            pixels = image.image.permute(1, 2, 0).numpy().tobytes()
            assert pixels == expected.tobytes()
    data = DataConfig(train=str(downloaded), crop=24, streams=4, workers=0)
    stream = TrainStream(data, seed=0, global_batch=14)
    samples = [batch["sample"] for batch in islice(stream, 2)]
    assert all(sorted(s.tolist()) == list(range(14)) for s in samples)


@pytest.mark.parametrize("name", ["../../evil.png", "/etc/evil.png", "a/../../evil.png", ".."])
def test_a_member_that_would_be_unpacked_elsewhere_is_refused(
    tmp_path, make_picture, encode, name: str
):
    members = {"fine.png": encode(make_picture(0), "PNG"), name: b"x"}
    write_tar(tmp_path / "a.tar", members)
    words = r"1 damaged tar, .*a\.tar: member '.*' would be unpacked outside"
    with pytest.raises(DataError, match=words):
        index(tmp_path, min_side=24, jobs=1)
    assert not (tmp_path / "manifest.json").exists()


def test_a_pixel_bomb_in_a_tar_is_not_listed(tmp_path, make_picture, encode, bomb):
    members = {"fine.png": encode(make_picture(0), "PNG"), "bomb.png": bomb(60_000, 60_000)}
    write_tar(tmp_path / "a.tar", members)
    manifest = index(tmp_path, min_side=24, jobs=1)
    assert manifest.shards[0].names == ["fine.png"]
    assert manifest.report["skipped"] == {"oversized": 1}


def test_links_in_a_tar_are_no_images(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert list(scan_tar(path)) == []


@pytest.mark.parametrize("member", [0, 5, 19, 20])
@pytest.mark.parametrize("place", [-512, -300, 0, 5])
def test_a_tar_truncated_in_or_between_members_is_named(downloaded, member: int, place: int):
    path = downloaded / "00001.tar"
    os.truncate(path, list(scan_tar(path))[member].offset + place)
    report = index(downloaded, min_side=24, jobs=1).report
    assert report["skipped"]["damaged tar"] == 1
    example = report["examples"]["damaged tar"]
    assert re.search(r"00001\.tar: is (not a readable tar|truncated)", example)
    assert [shard.path for shard in read_manifest(str(downloaded)).shards] == [
        "00000.tar",
        "00002.tar",
    ]


@given(st.binary(max_size=3000), st.integers(0, 2**20))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_tar_is_an_error_or_a_list_inside_it(tmp_path, damage: bytes, place: int):
    path = write_tar(tmp_path / "a.tar", {f"{n}.png": bytes([n]) * 700 for n in range(9)})
    content = bytearray(path.read_bytes())
    place %= len(content)
    content[place : place + len(damage)] = damage
    path.write_bytes(content)
    try:
        members = list(scan_tar(path))
    except DataError:
        return
    assert all(member.offset + member.size <= len(content) for member in members)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda root: None, {}, "no .tar files"),
        (lambda root: write_tar(root / "a.tar", {"a.txt": b""}), {}, "no usable image in 1 tars"),
        (lambda root: write_tar(root / "a.tar", {"a.txt": b""}), {"val": "b*"}, "matches none"),
        (lambda root: (root / "manifest.json").write_text("{}"), {}, "is there already"),
    ],
)
def test_what_cannot_be_indexed_is_an_error(tmp_path, make, options, message: str):
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        index(tmp_path, jobs=1, **options)


def edit(root: Path, change) -> str:
    """Change the first train shard's entry in the manifest; its path."""
    values = json.loads((root / "manifest.json").read_text())
    entry = next(entry for entry in values["shards"] if entry["split"] == "train")
    path = entry["path"]
    change(entry)
    (root / "manifest.json").write_text(json.dumps(values))
    return path


def swap_first_numbers(entry: dict) -> None:
    for column in ("offsets", "sizes"):
        first, second, *rest = entry[column].split()
        entry[column] = " ".join([second, first, *rest])


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda e: e.update(sha256="0" * 64), "SHA-256"),
        (lambda e: e.update(bytes=e["bytes"] + 512), "bytes, the manifest says"),
        (lambda e: e["names"].__setitem__(0, "other.png"), "not in the tar"),
        (swap_first_numbers, "elsewhere"),
        (lambda e: e.update(widths=" ".join("77" for _ in e["names"])), "manifest says 77x"),
    ],
)
def test_verify_finds_where_manifest_and_shard_disagree(copy, change, cause: str):
    path = edit(copy, change)
    problems = verify(str(copy), jobs=1)
    assert problems
    assert all(problem.shard == path and cause in problem.cause for problem in problems)


def test_verify_finds_changed_missing_and_foreign_shards(copy):
    shards = read_manifest(str(copy)).split("train", "").shards
    with (copy / shards[0].path).open("r+b") as stream:
        stream.seek(int(shards[0].offsets[0]))
        stream.write(b"\0\0\0\0")
    (copy / shards[1].path).unlink()
    os.truncate(copy / shards[2].path, shards[2].bytes - 1500)
    shutil.copy(copy / shards[3].path, copy / "train/foreign.tar")
    problems = [(problem.shard, problem.cause) for problem in verify(str(copy), jobs=2)]
    assert (shards[0].path, "its SHA-256 is not the manifest's") in problems
    assert any(p == shards[0].path and c.startswith("cannot be decoded") for p, c in problems)
    assert any(p == shards[1].path and c.startswith("cannot be read") for p, c in problems)
    assert any(p == shards[2].path and "the manifest says" in c for p, c in problems)
    assert ("train/foreign.tar", "is not in the manifest") in problems
    assert {path for path, _ in problems} <= {
        *(shard.path for shard in shards[:3]), "train/foreign.tar",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.update(path="../../outside.tar"), "leads outside the dataset"),
        (lambda e: e.update(path="/etc/passwd"), "leads outside the dataset"),
        (lambda e: e.update(sha256="../x"), "sha256 .* is not one"),
        (lambda e: e.update(offsets=e["offsets"] + " 5"), "differ in length"),
        (lambda e: e.update(sizes="9" * 30), "differ in length|outside its"),
        (lambda e: e.update(sizes=" ".join("999999999" for _ in e["names"])), "outside its"),
        (lambda e: e.update(offsets=" ".join(str(2**63 - 1) for _ in e["names"])), "outside its"),
        (lambda e: e.update(offsets=" ".join("-5" for _ in e["names"])), "outside its"),
        (lambda e: e.update(widths=[1, 2]), "damaged"),
        (lambda e: e.update(names=[1] * len(e["names"])), "differ in length or type"),
        (lambda e: e.pop("split"), "damaged"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_refused(copy, change, message: str):
    edit(copy, change)
    with pytest.raises(DataError, match=message):
        read_manifest(str(copy))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"format": "other"}', "{" * 10**5])
def test_text_that_is_no_manifest_is_refused(text: str):
    with pytest.raises(DataError, match=r"x: (is not JSON|is not a manifest)"):
        Manifest.loads(text, "x")


def test_an_empty_split_is_named(tmp_path, make_picture, encode):
    write_tar(tmp_path / "a.tar", {"a.png": encode(make_picture(0), "PNG")})
    index(tmp_path, val="a.tar", min_side=24, jobs=1)
    data = DataConfig(train=str(tmp_path), crop=24, workers=0)
    with pytest.raises(DataError, match=r"split 'train' is empty \(the dataset has: val\)"):
        TrainStream(data, seed=0, global_batch=1)


def test_a_dataset_given_for_validation_need_not_be_split(tmp_path, make_picture, encode):
    write_tar(tmp_path / "a.tar", {"a.png": encode(make_picture(0), "PNG")})
    index(tmp_path, min_side=24, jobs=1)
    data = DataConfig(train="nowhere", val=str(tmp_path))
    (image,) = read_images(data)
    assert torch.equal(image.image, torch.from_numpy(decode_whole(encode(make_picture(0), "PNG"))))


def test_the_commands_say_what_they_did_and_exit_2_on_bad_input(
    tmp_path, make_folder, monkeypatch, capsys
):
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hpcm-scale", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    photos = make_folder(tmp_path / "photos", 8)
    (tmp_path / "r.yaml").write_text("min_side: 24\nval: {names: [photo003]}\n")
    (photos / "broken.png").write_bytes(b"no")
    out = tmp_path / "out"
    code, said, _ = run("pack", photos, out, "--recipe", tmp_path / "r.yaml")
    assert code == 0
    assert "left out: 1 corrupt" in said
    code, said, _ = run("inspect", out, "--sheet", tmp_path / "sheet.png")
    assert code == 0
    assert "32 - 45" in said
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (1280, 160)
        assert len(sheet.getcolors(1 << 24)) > 1000
    assert run("verify", out)[0] == 0
    os.truncate(out / "train/000000.tar", 2000)
    code, said, error = run("verify", out)
    assert code == 2
    assert "train/000000.tar: has 2000 bytes" in said
    assert error.count("\n") == 1
    code, _, error = run("pack", tmp_path / "nowhere")
    assert (code, error.count("\n")) == (2, 1)
    assert "neither the command nor the recipe says what to pack" in error
    (tmp_path / "s.yaml").write_text(f"min_side: 24\nsource: {photos}/*1.png\n")
    code, said, _ = run("pack", tmp_path / "by recipe", "--recipe", tmp_path / "s.yaml")
    assert code == 0
    assert "photo001-" in (tmp_path / "by recipe/manifest.json").read_text()
    code, _, error = run("pack", photos, tmp_path / "strict", "--strict")
    assert code == 2
    assert error == "hpcm-scale: broken.png: cannot identify image file (--strict)\n"

"""Which members of foreign tars are samples; what is left out is counted."""

import gzip
import os
import tarfile
import zlib
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from hpcm_scale.cli import app
from hpcm_scale.config import DataConfig
from hpcm_scale.data.images import BadImage, decode_whole
from hpcm_scale.data.index import index
from hpcm_scale.data.pack import pack
from hpcm_scale.data.recipe import Recipe
from hpcm_scale.data.shards import Member, read_manifest, scan_tar
from hpcm_scale.data.stream import TrainStream, read_images
from hpcm_scale.data.tar_samples import Choice, choose_samples
from hpcm_scale.errors import DataError


def tar_of(names: list[str], content) -> bytes:
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number, name in enumerate(names):
            data = content(number)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def content(make_picture, encode):
    return lambda number: encode(make_picture(number), "PNG")


def taken(names: list[str], **choice) -> tuple[list[str], dict[str, int]]:
    members = [Member(name, 1000 * i, 10) for i, name in enumerate(names)]
    chosen, left = choose_samples(members, Choice(**choice))
    kinds = [entry.kind for entry in left]
    return [member.name for member in chosen], {kind: kinds.count(kind) for kind in kinds}


STEREO = ["a/0.left.jpg", "a/0.right.jpg", "a/1.left.jpg", "a/1.right.jpg", "a/1.json"]


@pytest.mark.parametrize(
    ("names", "choice", "expected", "left"),
    [
        (["x.png", "x.jpg", "x.seg.png"], {}, ["x.jpg"], {"other member": 2}),
        (["0.depth.png", "0.jpg"], {}, ["0.jpg"], {"other member": 1}),
        (["0.depth.png", "0.jpg"], {"member": "depth.png"}, ["0.depth.png"], {"other member": 1}),
        (["f.0000.jpg", "f.0001.jpg"], {}, ["f.0000.jpg", "f.0001.jpg"], {}),
        (["f.0000.jpg", "f.0001.jpg"], {"key_split": "first"}, ["f.0000.jpg"], {"other member": 1}),
        (["f.a.jpg", "f.b.jpg"], {"key_split": "last"}, ["f.a.jpg", "f.b.jpg"], {}),
        (STEREO, {}, STEREO[0::2][:2], {"other member": 2}),
        (STEREO, {"member": "RIGHT.jpg"}, [STEREO[1], STEREO[3]], {"other member": 2}),
        (STEREO, {"all_members": True}, STEREO[:4], {}),
        (["s.jpg", "s.jpg", "s.jpg"], {}, ["s.jpg"], {"duplicate name": 2}),
        (["._0.jpg", "0.jpg", "0.gif"], {}, ["0.jpg"], {"hidden": 1, "other format": 1}),
    ],
)
def test_the_sample_of_each_key(names, choice, expected, left):
    assert taken(names, **choice) == (expected, left)


def test_tars_joined_end_to_end_are_read_to_the_end(tmp_path: Path, content):
    first, second = tar_of(["0.png", "1.png"], content), tar_of(["2.png"], content)
    (tmp_path / "a.tar").write_bytes(first + second)
    assert index(tmp_path, min_side=24, jobs=1).shards[0].names == ["0.png", "1.png", "2.png"]
    images = list(read_images(str(tmp_path), "train"))
    assert [image.key for image in images] == ["0", "1", "2"]
    assert np.array_equal(images[2].image.numpy(), decode_whole(content(0)))


def test_sparse_members_and_compressed_tars_are_named(tmp_path: Path, content):
    (tmp_path / "c.tar.gz").write_bytes(gzip.compress(tar_of(["9.png"], content)))
    with pytest.raises(DataError, match=r"only compressed ones \(c\.tar\.gz\): decompress"):
        index(tmp_path, jobs=1)
    with (tmp_path / "0.png").open("wb") as stream:
        stream.truncate(10_000_000)
        stream.seek(9_000_000)
        stream.write(b"end")
    (tmp_path / "1.png").write_bytes(content(0))
    command = f"cd {tmp_path} && tar --sparse -cf a.tar 0.png 1.png && rm 0.png 1.png"
    assert os.system(command) == 0
    report = index(tmp_path, min_side=24, jobs=1).report
    assert report["packed"] == 1
    assert report["skipped"] == {"compressed tar": 1, "sparse": 1}


@pytest.mark.parametrize("mode", ["I;16", "RGBA", "CMYK", "P", "L", "1", "LA"])
def test_modes_are_decoded_as_pack_does_or_refused(tmp_path: Path, make_picture, mode):
    picture = Image.fromarray(np.asarray(make_picture(5)))
    if mode == "I;16":
        odd = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    else:
        odd = Image.fromarray(np.asarray(make_picture(6))).convert(mode)
        if mode in ("RGBA", "LA"):
            odd.putpixel((0, 0), (0,) * len(odd.getbands()))  # transparent
    buffer = BytesIO()
    odd.save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    suffix = "tif" if mode == "CMYK" else "png"
    plain = BytesIO()
    picture.save(plain, "PNG")
    contents = [buffer.getvalue(), plain.getvalue()]
    (tmp_path / "a.tar").write_bytes(tar_of([f"0.{suffix}", "1.png"], contents.__getitem__))
    indexed = index(tmp_path, min_side=24, jobs=1)
    source = tmp_path / "photos"
    source.mkdir()
    (source / f"0.{suffix}").write_bytes(buffer.getvalue())
    (source / "1.png").write_bytes(plain.getvalue())
    packed = pack(source, tmp_path / "packed", Recipe(min_side=24), jobs=1)
    refused = {"I;16": "unsupported", "RGBA": "transparent", "LA": "transparent"}.get(mode)
    for report in (indexed.report, packed.report):
        assert report["skipped"] == ({refused: 1} if refused else {})
    ours = sorted(i.image.numpy().tobytes() for i in read_images(str(tmp_path), "train"))
    theirs = sorted(
        i.image.numpy().tobytes() for i in read_images(str(tmp_path / "packed"), "train")
    )
    assert ours == theirs


def test_sixteen_bits_are_never_trained_on_as_white():
    buffer = BytesIO()
    Image.fromarray(np.full((64, 64), 30_000, np.uint16)).save(buffer, "PNG")
    with pytest.raises(BadImage, match="more than 8 bits"):
        decode_whole(buffer.getvalue())


def test_a_flipped_byte_is_noticed_and_replaced(tmp_path: Path, make_picture):
    """In a stored (uncompressed) PNG whose own checksums are off, pixels would change unnoticed."""
    raw = [BytesIO() for _ in range(4)]
    for number, buffer in enumerate(raw):
        make_picture(number).save(buffer, "BMP")
    names = [f"{n}.bmp" for n in range(4)]
    (tmp_path / "a.tar").write_bytes(tar_of(names, lambda n: raw[n].getvalue()))
    manifest = index(tmp_path, min_side=24, jobs=1)
    (shard,) = manifest.shards
    assert shard.crcs.tolist() == [zlib.crc32(buffer.getvalue()) for buffer in raw]
    with (tmp_path / "a.tar").open("r+b") as stream:
        stream.seek(int(shard.offsets[2] + shard.sizes[2] - 40))
        byte = stream.read(1)
        stream.seek(-1, 1)
        stream.write(bytes([byte[0] ^ 1]))
    data = DataConfig(train=str(tmp_path), crop=24, streams=1, workers=0, max_bad_rate=1)
    stream = TrainStream(data, seed=0, global_batch=4)
    (batch,) = islice(stream, 1)
    assert stream.bad == 1
    assert sorted(batch["sample"].tolist()) == [0, 1, 3, 3]
    with pytest.raises(DataError, match=r"2\.bmp: cannot be decoded .*CRC-32"):
        list(read_images(str(tmp_path), "train"))


def test_manifests_without_checksums_still_open(tmp_path: Path, content):
    import json

    (tmp_path / "a.tar").write_bytes(tar_of(["0.png"], content))
    index(tmp_path, min_side=24, jobs=1)
    path = tmp_path / "manifest.json"
    values = json.loads(path.read_text())
    del values["shards"][0]["crcs"]
    path.write_text(json.dumps(values))
    assert read_manifest(str(tmp_path)).shards[0].crcs is None
    assert len(list(read_images(str(tmp_path), "train"))) == 1


def test_a_panorama_is_stored_as_png(tmp_path: Path):
    Image.new("RGB", (16_400, 24), "red").save(tmp_path / "wide.png")
    Image.new("RGB", (48, 24), "blue").save(tmp_path / "small.png")
    recipe = Recipe(min_side=24, format="webp")
    manifest = pack(tmp_path, tmp_path / "out", recipe, jobs=1)
    names = [name for shard in manifest.shards for name in shard.names]
    assert sorted(name.rpartition(".")[2] for name in names) == ["png", "webp"]


def test_linked_folders_are_followed_once(tmp_path: Path, make_picture):
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    (source / "real").mkdir(parents=True)
    elsewhere.mkdir()
    make_picture(0).save(source / "real" / "a.png")
    make_picture(1).save(elsewhere / "b.png")
    (source / "again").symlink_to(source / "real")
    (source / "far").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(source)
    manifest = pack(source, tmp_path / "out", Recipe(min_side=24), jobs=1)
    assert manifest.report["found"] == manifest.report["packed"] == 2


def test_a_set_of_small_jpegs_is_told_what_to_take(tmp_path: Path, make_picture):
    make_picture(0).save(tmp_path / "a.jpg")
    recipe = Recipe(min_side=32, jpeg_downscale=0.5)
    with pytest.raises(DataError, match=r"scales JPEGs by 0\.5 .*shards/small-photos\.yaml"):
        pack(tmp_path, tmp_path / "out", recipe, jobs=1)


def test_the_verb_says_what_it_leaves_out(tmp_path: Path, content):
    (tmp_path / "a.tar").write_bytes(tar_of(["0.depth.png", "0.jpg"], content))
    result = CliRunner().invoke(app, ["index", str(tmp_path), "--min-side", "24", "--jobs", "1"])
    assert result.exit_code == 0, result.output
    assert "left out, other member: 1, such as a.tar: 0.depth.png" in result.output


@pytest.mark.skipif(not os.environ.get("HPCM_SHARED"), reason="HPCM_SHARED is not set")
@pytest.mark.parametrize(
    ("name", "packed", "skipped"),
    [
        ("dots", 20, set()),
        ("dup", 1, {"duplicate name"}),
        ("depth", None, {"other member"}),
    ],
)
def test_tars_that_once_lost_samples(tmp_path: Path, name, packed, skipped):
    path = Path(os.environ["HPCM_SHARED"]) / "fails" / "tars" / name / "000.tar"
    (tmp_path / "000.tar").write_bytes(path.read_bytes())
    manifest = index(tmp_path, min_side=8, jobs=1)
    images = [member for member in scan_tar(path) if member.name.endswith((".jpg", ".png"))]
    assert manifest.report["skipped"].keys() == skipped
    assert manifest.report["found"] == len(images)
    assert packed is None or manifest.report["packed"] == packed
    assert not any("depth" in n for shard in manifest.shards for n in shard.names)

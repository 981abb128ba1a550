"""Packing: what goes in, what is left out and counted, and the same bytes by every road."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from hpcm_scale.data.images import decode_whole, pixel_hash
from hpcm_scale.data.manifest import Manifest
from hpcm_scale.data.pack import pack, parse_part
from hpcm_scale.data.pack_chunks import ChunkStore
from hpcm_scale.data.recipe import Recipe, ValConfig, read_recipe
from hpcm_scale.data.shards import read_manifest
from hpcm_scale.data.verify import verify
from hpcm_scale.errors import ConfigError, DataError

SMALL = {"min_side": 24}


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def packed_pixels(root: Path, split: str) -> list[np.ndarray]:
    """Every image of a split by plain webdataset, which knows nothing of the manifest."""
    urls = sorted(str(path) for path in (root / split).glob("*.tar"))
    samples = webdataset.WebDataset(urls, shardshuffle=False).rename(image="png;jpg;webp")
    return [decode_whole(sample["image"]) for sample in samples]


def stems(manifest: Manifest, split: str) -> set[str]:
    return {
        name.rpartition("-")[0] for s in manifest.shards if s.split == split for name in s.names
    }


def test_plain_webdataset_reads_every_packed_image(tmp_path, make_folder):
    photos = make_folder(tmp_path / "photos", 9)
    pack(photos, tmp_path / "out", Recipe(**SMALL, shard_mb=0.01), jobs=1)
    expected = [
        np.asarray(Image.open(path)).transpose(2, 0, 1) for path in sorted(photos.iterdir())
    ]
    found = packed_pixels(tmp_path / "out", "train")
    assert len(list((tmp_path / "out/train").glob("*.tar"))) > 1
    assert all((a == b).all() for a, b in zip(found, expected, strict=True))


def test_the_manifest_seeks_to_every_image(dataset: Path):
    manifest = read_manifest(str(dataset))
    for shard in manifest.shards:
        content = (dataset / shard.path).read_bytes()
        assert len(content) == shard.bytes
        for row in range(shard.samples):
            start = int(shard.offsets[row])
            pixels = decode_whole(content[start : start + int(shard.sizes[row])])
            assert pixels.shape == (3, shard.heights[row], shard.widths[row])
    assert verify(str(dataset), jobs=1) == []
    assert Manifest.loads(manifest.dumps(), "again").dumps() == manifest.dumps()


@pytest.fixture
def odd_folder(tmp_path, make_picture, encode, bomb) -> Path:
    """One file of every kind a folder of photos has in it."""
    folder = tmp_path / "odd"
    (folder / "sub").mkdir(parents=True)
    good = encode(make_picture(0), "PNG")
    files = {
        "a.png": good,
        "copy.png": good,
        "sub/same pixels.webp": encode(make_picture(0), "WEBP", lossless=True),
        "grey.png": encode(make_picture(1).convert("L"), "PNG"),
        "palette.png": encode(make_picture(2).convert("P"), "PNG"),
        "cmyk.jpg": encode(make_picture(3).convert("CMYK"), "JPEG"),
        "opaque.png": encode(make_picture(4).convert("RGBA"), "PNG"),
        "tiff.tif": encode(make_picture(5), "TIFF"),
        "sub/a.jpg": encode(make_picture(6), "JPEG"),
        "tiny.png": encode(make_picture(7, 23, 99), "PNG"),
        "truncated.png": encode(make_picture(8), "PNG")[:-1500],
        "text.jpg": b"these are not pixels",
        "empty.png": b"",
        "big.png": encode(Image.new("RGB", (700, 700)), "PNG"),
        "bomb.png": bomb(60_000, 60_000),
        "phone.jpg": encode(
            make_picture(12), "MPO", save_all=True, append_images=[make_picture(13, 20, 20)]
        ),
        "notes.txt": b"hello",
    }
    glass = make_picture(9).convert("RGBA")
    glass.putalpha(Image.new("L", glass.size, 100))
    files["glass.png"] = encode(glass, "PNG")
    deep = Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40))
    files["deep.png"] = encode(deep, "PNG")
    frames = [make_picture(10), make_picture(11)]
    files["moving.webp"] = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "broken link.png").symlink_to(folder / "nowhere.png")
    return folder


def test_every_odd_file_is_handled_and_counted(tmp_path, odd_folder, make_picture):
    recipe = Recipe(**SMALL, max_pixels=400_000)
    manifest = pack(odd_folder, tmp_path / "out", recipe, jobs=2)
    assert manifest.report == {
        "found": 19,
        "packed": 8,
        "not_images": 2,
        "skipped": {
            "corrupt": 3, "duplicate": 2, "oversized": 2, "tiny": 1, "transparent": 1,
            "unsupported": 2,
        },
    }  # fmt: skip
    left_out = json.loads((tmp_path / "out/report.json").read_text())["files"]
    kinds = {entry["file"]: entry["kind"] for entry in left_out}
    assert kinds == {
        "copy.png": "duplicate", "sub/same pixels.webp": "duplicate", "tiny.png": "tiny",
        "truncated.png": "corrupt", "text.jpg": "corrupt", "empty.png": "corrupt",
        "big.png": "oversized", "bomb.png": "oversized", "glass.png": "transparent",
        "deep.png": "unsupported", "moving.webp": "unsupported",
    }  # fmt: skip
    pixels = packed_pixels(tmp_path / "out", "train")
    by_hash = {pixel_hash(Image.fromarray(image.transpose(1, 2, 0))) for image in pixels}
    for number, mode in ((0, "RGB"), (1, "L"), (2, "P"), (4, "RGB"), (5, "RGB")):
        assert pixel_hash(make_picture(number).convert(mode).convert("RGB")) in by_hash


def test_a_corrupt_image_is_fatal_when_strict(tmp_path, odd_folder):
    with pytest.raises(DataError, match=r"empty\.png.*--strict"):
        pack(odd_folder, tmp_path / "out", Recipe(**SMALL), strict=True, jobs=2)
    assert not (tmp_path / "out/manifest.json").exists()
    assert not list((tmp_path / "out").rglob("*.tar"))


def test_strict_also_means_what_an_earlier_run_skipped(tmp_path, odd_folder):
    recipe = Recipe(**SMALL)
    pack(odd_folder, tmp_path / "out", recipe, part=(1, 2), jobs=1)
    with pytest.raises(DataError, match=r"empty\.png.*--strict"):
        pack(odd_folder, tmp_path / "out", recipe, strict=True, jobs=1)
    pack(odd_folder, tmp_path / "out", recipe, jobs=1)
    with pytest.raises(DataError, match=r"3 corrupt images .*report\.json .*--strict"):
        pack(odd_folder, tmp_path / "out", recipe, strict=True, jobs=1)


def test_non_rgb_images_are_left_out_on_request(tmp_path, odd_folder):
    recipe = Recipe(**SMALL, max_pixels=400_000, non_rgb="skip")
    manifest = pack(odd_folder, tmp_path / "out", recipe, jobs=1)
    assert manifest.report["skipped"]["non-RGB"] == 5  # grey, palette, cmyk, opaque, glass
    assert manifest.report["packed"] == 4
    assert stems(manifest, "train") == {"a", "phone", "tiff"}  # a.png and sub/a.jpg


@pytest.mark.parametrize("wanted", ["png", "webp"])
def test_re_encoding_loses_nothing(tmp_path, make_folder, wanted: str):
    photos = make_folder(tmp_path / "photos", 4)
    manifest = pack(photos, tmp_path / "out", Recipe(**SMALL, format=wanted), jobs=1)
    assert all(name.endswith(f".{wanted}") for name in manifest.shards[0].names)
    expected = [np.asarray(Image.open(p)).transpose(2, 0, 1) for p in sorted(photos.iterdir())]
    found = packed_pixels(tmp_path / "out", "train")
    assert all((a == b).all() for a, b in zip(found, expected, strict=True))


def test_only_jpeg_sources_are_scaled_down(tmp_path, make_picture):
    photos = tmp_path / "photos"
    photos.mkdir()
    make_picture(0, 80, 64).save(photos / "lossy.jpg")
    make_picture(1, 80, 64).save(photos / "lossless.png")
    make_picture(2, 80, 40).save(photos / "too small after it.jpg")
    manifest = pack(photos, tmp_path / "out", Recipe(**SMALL, jpeg_downscale=0.5), jobs=1)
    shard = manifest.shards[0]
    sizes = {
        name.rpartition("-")[0] + name[-4:]: (int(w), int(h))
        for name, w, h in zip(shard.names, shard.widths, shard.heights, strict=True)
    }
    assert sizes == {"lossy.png": (40, 32), "lossless.png": (80, 64)}
    assert manifest.report["skipped"] == {"tiny": 1}


def test_packing_again_moves_no_image_between_splits(tmp_path, make_folder):
    recipe = Recipe(**SMALL, val={"fraction": 0.3})
    photos = make_folder(tmp_path / "photos", 40)
    before = pack(photos, tmp_path / "before", recipe, jobs=2)
    gone = sorted(photos.iterdir())[:11]
    for path in gone:
        path.unlink()
    # A new name, and a lossless copy in another format: the same content all the same.
    renamed = sorted(photos.iterdir())[0].rename(photos / "renamed.png")
    with Image.open(photos / "photo020.png") as image:
        image.save(photos / "photo020.webp", lossless=True)
    (photos / "photo020.png").unlink()
    after = pack(photos, tmp_path / "after", Recipe(**SMALL, val={"fraction": 0.3}), jobs=1)

    def split_of(manifest: Manifest) -> dict[str, str]:
        return {
            name.rpartition("-")[2][:16]: shard.split
            for shard in manifest.shards
            for name in shard.names
        }

    assert renamed.exists()
    first, second = split_of(before), split_of(after)
    assert len(second) == 29
    assert all(first[key] == split for key, split in second.items())
    assert set(second.values()) == {"train", "val"}


def test_named_images_are_kept_for_validation(tmp_path, make_folder):
    photos = make_folder(tmp_path / "photos", 9)
    recipe = Recipe(**SMALL, val={"names": ["photo003", "photo007"]})
    manifest = pack(photos, tmp_path / "out", recipe, jobs=1)
    assert stems(manifest, "val") == {"photo003", "photo007"}
    assert len(stems(manifest, "train")) == 7


@pytest.fixture(scope="module")
def road(tmp_path_factory, make_folder) -> tuple[Path, Recipe, Path]:
    """A source with duplicates across chunks, its recipe, and what packing it in one go gives."""
    root = tmp_path_factory.mktemp("road")
    photos = make_folder(root / "photos", 40)
    for number in (3, 17):
        shutil.copy(photos / f"photo{number:03d}.png", photos / f"zz copy of {number}.png")
    recipe = Recipe(**SMALL, shard_mb=0.02, val={"fraction": 0.2})
    pack(photos, root / "out", recipe, jobs=2)
    assert len(read_manifest(str(root / "out")).shards) > 4
    return photos, recipe, root / "out"


def test_the_number_of_processes_does_not_change_a_byte(tmp_path, road):
    photos, recipe, expected = road
    pack(photos, tmp_path / "out", recipe, jobs=1)
    assert contents(tmp_path / "out") == contents(expected)


@pytest.mark.parametrize("hosts", [2, 3, 11])
def test_parts_of_several_hosts_make_what_one_host_makes(tmp_path, road, monkeypatch, hosts: int):
    photos, recipe, expected = road
    for host in range(1, hosts + 1):
        out = tmp_path / f"host{host}"
        assert pack(photos, out, recipe, part=(host, hosts), jobs=1) is None
        if (out / "chunks").exists():  # a host more than there are chunks has nothing to do
            shutil.copytree(out / "chunks", tmp_path / "out/chunks", dirs_exist_ok=True)
    monkeypatch.setattr(ChunkStore, "write", None)  # nothing is left to pack
    pack(photos, tmp_path / "out", recipe, jobs=1)
    assert contents(tmp_path / "out") == contents(expected)


def test_an_interrupted_pack_goes_on_where_it_was(tmp_path, road, monkeypatch):
    photos, recipe, expected = road
    written = []
    write = ChunkStore.write

    def stops_at_third(self: ChunkStore, number: int, results: object) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        write(self, number, results)
        written.append(number)

    monkeypatch.setattr(ChunkStore, "write", stops_at_third)
    with pytest.raises(KeyboardInterrupt):
        pack(photos, tmp_path / "out", recipe, jobs=1)
    monkeypatch.undo()
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out/chunks").glob("*.json")}
    assert len(stamps) == 3

    def finished(self: ChunkStore, number: int, results: object) -> None:
        assert number not in written
        write(self, number, results)

    monkeypatch.setattr(ChunkStore, "write", finished)
    pack(photos, tmp_path / "out", recipe, jobs=1)
    assert contents(tmp_path / "out") == contents(expected)


def test_a_pack_killed_while_making_shards_resumes(tmp_path, road):
    photos, recipe, expected = road
    for host in (1, 2):
        pack(photos, tmp_path / "out", recipe, part=(host, 2), jobs=1)
    (tmp_path / "out/train").mkdir()
    (tmp_path / "out/train/.000000.x1.tmp.tar").write_bytes(b"half a shard")
    (tmp_path / "out/train/000001.tar").write_bytes(b"from when the source was another")
    pack(photos, tmp_path / "out", recipe, jobs=2)
    assert contents(tmp_path / "out") == contents(expected)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_folder_of_foreign_shards_is_left_alone(tmp_path, make_folder, split: str):
    photos = make_folder(tmp_path / "photos", 2)
    (tmp_path / "out" / split).mkdir(parents=True)
    with pytest.raises(DataError, match=r"holds shards without a manifest\.json"):
        pack(photos, tmp_path / "out", Recipe(**SMALL), jobs=1)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path, make_folder):
    photos = make_folder(tmp_path / "photos", 2)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        pack(photos, tmp_path / "file/out", Recipe(**SMALL), jobs=1)


@pytest.mark.distributed
def test_a_killed_pack_leaves_nothing_half_written_and_resumes(tmp_path, road):
    photos, recipe, expected = road
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))
    command = [
        sys.executable, "-m", "hpcm_scale.cli", "pack", str(photos), str(tmp_path / "out"),
        "--recipe", str(tmp_path / "recipe.yaml"), "--jobs", "1",
    ]  # fmt: skip
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    chunks = tmp_path / "out/chunks"
    while process.poll() is None and len(list(chunks.glob("*.json"))) < 2:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(list(chunks.glob("*.json"))) >= 2 or (tmp_path / "out/manifest.json").exists()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "out") == contents(expected)


def test_a_finished_pack_is_not_done_again(road):
    photos, recipe, expected = road
    stamps = {p: p.stat().st_mtime_ns for p in expected.rglob("*")}
    manifest = pack(photos, expected, recipe)
    assert manifest.report["packed"] == 40
    assert stamps == {p: p.stat().st_mtime_ns for p in expected.rglob("*")}


def test_another_recipe_into_the_same_folder_is_refused(tmp_path, road):
    photos, recipe, expected = road
    other = recipe.model_copy(update={"min_side": 33})
    with pytest.raises(DataError, match="another recipe"):
        pack(photos, expected, other)
    pack(photos, tmp_path / "out", recipe, part=(1, 2), jobs=1)
    with pytest.raises(DataError, match="unfinished pack of another"):
        pack(photos, tmp_path / "out", other)


def test_a_glob_and_a_folder_name_the_same_images(tmp_path, make_folder):
    photos = make_folder(tmp_path / "photos", 4)
    make_folder(photos / "deeper", 6)
    recipe = Recipe(**SMALL)
    pack(photos, tmp_path / "folder", recipe, jobs=1)
    pack(f"{photos}/**/*.png", tmp_path / "glob", recipe, jobs=1)
    assert contents(tmp_path / "folder") == contents(tmp_path / "glob")
    top = pack(f"{photos}/*.png", tmp_path / "top", recipe, jobs=1)
    assert top.report["packed"] == 4


def test_output_inside_the_source_is_not_packed(tmp_path, make_folder):
    photos = make_folder(tmp_path / "photos", 3)
    (photos / "out").mkdir()
    shutil.copy(photos / "photo000.png", photos / "out/left over.png")
    manifest = pack(photos, photos / "out", Recipe(**SMALL), jobs=1)
    assert manifest.report["found"] == 3


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "no images there"),
        (lambda folder: (folder / "a.txt").write_text("x"), r"no images there \(1 other"),
        (lambda folder: (folder / "a.png").write_text("x"), r"no image passed .*1 corrupt"),
        (lambda folder: folder.rmdir(), "neither a folder nor a glob"),
    ],
)
def test_a_source_without_images_is_an_error(
    tmp_path, prepare: Callable[[Path], object], message: str
):
    (tmp_path / "photos").mkdir()
    prepare(tmp_path / "photos")
    with pytest.raises(DataError, match=message):
        pack(tmp_path / "photos", tmp_path / "out", Recipe(), jobs=1)
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_missing_validation_name_is_an_error(tmp_path, make_folder):
    with pytest.raises(DataError, match=r"val\.names: no image is called nobody"):
        pack(make_folder(tmp_path / "p", 2), tmp_path / "out", Recipe(val={"names": ["nobody"]}))


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "-1/2", "1/0"])
def test_a_part_that_is_not_one_is_an_error(text: str):
    with pytest.raises(ConfigError, match="--part"):
        parse_part(text)


@pytest.mark.parametrize("name", ["quickstart", "photos"])
def test_the_recipes_in_the_repository_are_valid(name: str):
    recipe = read_recipe(Path(__file__).parents[2] / f"shards/{name}.yaml")
    assert recipe.licence


def test_a_recipe_with_a_wrong_value_names_it(tmp_path):
    (tmp_path / "r.yaml").write_text("val: {fraction: 2}\nsides: 3\n")
    with pytest.raises(ConfigError, match=r"r\.yaml: val\.fraction: 2.*sides: unknown key"):
        read_recipe(tmp_path / "r.yaml")


def test_any_file_name_becomes_a_key_that_is_safe_and_unique(tmp_path, make_picture, encode):
    photos = tmp_path / "photos"
    names = ["ü é.v2.png", "..png", "a/same.png", "b/same.png", "-rf *.png", "x" * 200 + ".png"]
    for number, name in enumerate(names):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(encode(make_picture(number), "PNG"))
    (photos / os.fsdecode(b"latin \xe9.png")).write_bytes(encode(make_picture(9), "PNG"))
    (shard,) = pack(photos, tmp_path / "out", Recipe(**SMALL), jobs=1).shards
    assert len(set(shard.names)) == 7
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{17,77}\.png", name) for name in shard.names)
    assert len(packed_pixels(tmp_path / "out", "train")) == 7


def test_metadata_of_a_re_encoded_photo_stays_behind(tmp_path, make_picture):
    (tmp_path / "photos").mkdir()
    exif = Image.Exif()
    exif[0x010E] = "where the photographer lives"
    make_picture(0).save(tmp_path / "photos/a.png", exif=exif)
    manifest = pack(tmp_path / "photos", tmp_path / "out", Recipe(**SMALL, format="png"), jobs=1)
    shard = (tmp_path / "out" / manifest.shards[0].path).read_bytes()
    start, size = int(manifest.shards[0].offsets[0]), int(manifest.shards[0].sizes[0])
    with Image.open(BytesIO(shard[start : start + size])) as image:
        assert not image.getexif()


def test_photos_are_added_to_a_packed_set(tmp_path: Path, make_picture):
    source, out = tmp_path / "photos", tmp_path / "out"
    source.mkdir()
    recipe = Recipe(min_side=24, val=ValConfig(fraction=0.4))
    for number in range(8):
        make_picture(number).save(source / f"{number}.png")
    first = pack(source, out, recipe, jobs=1)
    before = {shard.path: (out / shard.path).read_bytes() for shard in first.shards}
    split_of = {name: shard.split for shard in first.shards for name in shard.names}
    for number in range(8, 16):
        make_picture(number).save(source / f"{number}.png")
    make_picture(3).save(source / "again.png")
    with pytest.raises(DataError, match="--append adds the images"):
        pack(source, out, recipe, jobs=1)
    second = pack(source, out, recipe, append=True, jobs=1)
    assert second.report["packed"] == 16
    assert {path: (out / path).read_bytes() for path in before} == before
    assert [shard.path for shard in second.shards[: len(before)]] == list(before)
    everything = {name: shard.split for shard in second.shards for name in shard.names}
    assert len(everything) == 16
    assert split_of.items() <= everything.items()
    # The same split as when all are packed at once.
    whole = pack(source, tmp_path / "whole", recipe, jobs=1)
    keys = {name.rpartition("-")[2]: s.split for s in whole.shards for name in s.names}
    assert {name.rpartition("-")[2]: split for name, split in everything.items()} == keys
    assert verify(str(out), jobs=1) == []
    assert pack(source, out, recipe, append=True, jobs=1).source == second.source
    with pytest.raises(DataError, match="another recipe"):
        pack(source, out, Recipe(min_side=25), append=True, jobs=1)


def test_adding_photos_decodes_only_the_new_ones(tmp_path: Path, make_picture):
    source, out = tmp_path / "photos", tmp_path / "out"
    source.mkdir()
    recipe = Recipe(min_side=24)
    for number in range(4):
        make_picture(number).save(source / f"{number}.bmp")
    (source / "torn.png").write_bytes(b"no picture")
    first = pack(source, out, recipe, jobs=1)
    for number in range(2):  # they would be reported as corrupt if they were decoded again
        path = source / f"{number}.bmp"
        time = path.stat().st_mtime_ns
        path.write_bytes(bytes(path.stat().st_size))
        os.utime(path, ns=(time, time))
    make_picture(4).save(source / "2.bmp")  # changed in place, of the same size
    make_picture(5).save(source / "torn.png")
    second = pack(source, out, recipe, append=True, jobs=1)
    assert second.report["skipped"] == {}
    assert second.report["packed"] == first.report["packed"] + 2 == 6
    assert len(list(out.glob("sources-*.npy"))) == 1
    # Another folder's files of the same names and sizes are others.
    other = tmp_path / "other"
    other.mkdir()
    make_picture(7).save(other / "3.bmp")
    assert pack(other, out, recipe, append=True, jobs=1).report["packed"] == 7
    # Without the record all are looked at once more, and nothing is packed twice.
    next(out.glob("sources-*.npy")).write_bytes(b"damaged")
    make_picture(6).save(source / "6.bmp")
    third = pack(source, out, recipe, append=True, jobs=1)
    assert third.report["skipped"] == {"corrupt": 2}
    assert third.report["packed"] == 8
    assert verify(str(out), jobs=1) == []

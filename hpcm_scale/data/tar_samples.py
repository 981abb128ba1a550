"""Which members of a tar made elsewhere are its samples, and what of it is not taken."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from webdataset.tariterators import base_plus_ext

from hpcm_scale.data.images import SUFFIXES, image_suffix
from hpcm_scale.data.shards import Member

KeySplit = Literal["auto", "first", "last"]
UNREAD = (".gif", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".exr", ".hdr", ".dng", ".npy")
"""Suffixes of pictures that training does not read."""


@dataclass(frozen=True)
class Choice:
    """Which image member of a key is the sample."""

    member: str | None = None
    """Ending after the key in the name of the one wanted, such as jpg or left.jpg."""
    all_members: bool = False
    """Every image is a sample of its own."""
    key_split: KeySplit = "auto"
    """Where a key ends: at the first dot after the folder, as WebDataset has it, or at the last.
    auto: at the first, but numbered frames (frame.0001.jpg) are samples each."""


class NotTaken(NamedTuple):
    """A member that is no sample."""

    name: str
    kind: str
    detail: str


def choose_samples(
    members: Iterable[Member], choice: Choice
) -> tuple[list[Member], list[NotTaken]]:
    """The samples among the members of a tar, in its order, and the pictures that are none."""
    left: list[NotTaken] = []
    keys: dict[str, list[tuple[str, Member]]] = {}
    seen: set[str] = set()
    for member in members:
        suffix = "." + member.name.rpartition(".")[2].lower()
        if suffix in UNREAD:
            left.append(NotTaken(member.name, "other format", f"{suffix} is not read in training"))
        if not image_suffix(member.name):
            continue
        key, ending = base_plus_ext(member.name)
        if key is None or ending is None or not key.rpartition("/")[2]:
            left.append(NotTaken(member.name, "hidden", "its name begins with a dot"))
        elif member.name in seen:
            left.append(NotTaken(member.name, "duplicate name", "another member has its name"))
        elif member.sparse:
            left.append(NotTaken(member.name, "sparse", "its bytes do not lie in one piece"))
        else:
            if choice.key_split == "last":
                key, _, ending = member.name.rpartition(".")
            keys.setdefault(key, []).append((ending.lower(), member))
        seen.add(member.name)
    taken: list[Member] = []
    for key, images in keys.items():
        chosen = _chosen(images, choice)
        taken += chosen
        for ending, member in images:
            if member not in chosen:
                detail = f"{ending!r} is not the one taken of {key!r}"
                left.append(NotTaken(member.name, "other member", detail))
    return sorted(taken, key=lambda member: member.offset), left


def _chosen(images: list[tuple[str, Member]], choice: Choice) -> list[Member]:
    """The samples among the images of one key."""
    if choice.member is not None:
        return [member for ending, member in images if ending == choice.member.lower()]
    numbered = all(ending.partition(".")[0].isdecimal() for ending, _ in images)
    if choice.all_members or (choice.key_split == "auto" and numbered):
        return [member for _, member in images]

    def rank(image: tuple[str, Member]) -> tuple[int, int]:
        """The photo is jpg rather than depth.png, and jpg rather than png."""
        ending = image[0]
        return ending.count("."), SUFFIXES.index("." + ending.rpartition(".")[2])

    return [min(images, key=rank)[1]]

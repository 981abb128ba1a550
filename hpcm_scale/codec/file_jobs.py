"""Files a command reads and writes: folders entered, nothing overwritten unasked."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from hpcm_scale.errors import BitstreamError, DataError

PIPE = "-"
"""Name of standard input among inputs, and of standard output as the output."""
LONGEST_NAME = 255
"""Most bytes of a file's name on common file systems."""


class Job(NamedTuple):
    """A file to read and the file to write."""

    source: str
    target: str


class Plan(NamedTuple):
    """Jobs to run, and the inputs left out."""

    jobs: list[Job]
    skipped: int
    """Inputs whose result is there already."""


class _Input(NamedTuple):
    path: str
    within: Path
    """Place of its result inside an output folder."""


def plan_jobs(
    inputs: Sequence[str],
    output: str | None,
    suffix: str,
    accepts: Callable[[str], bool],
    single: Callable[[str], bool],
    readable: Callable[[str], bool],
    force: bool = False,
    skip_existing: bool = False,
) -> Plan:
    """The file that each input's result goes to.

    Args:
        inputs: files, folders to search, or - for standard input.
        output: file, folder or -; None for a file beside each input.
        suffix: ending of the results.
        accepts: whether a file of a folder is one to read, by its name.
        single: whether a name is that of a result rather than of a folder.
        readable: whether a file holds what is read, whatever its name.
        force: replace files that a result's name was made for without being given.
        skip_existing: leave out inputs whose result is there.

    Raises:
        DataError: if two results would go to one file, or a result to a file that is there and
            was not named; or if what was given for a further input seems to be the output.
    """
    if output is None:
        _check_no_result(inputs[1:], single, readable)
    if PIPE in inputs and len(inputs) > 1:
        raise DataError("-: standard input has no name to make another from; give it alone")
    sources = [found for name in inputs for found in _files(name, suffix, accepts)]
    file = None if output is None or _is_folder(output) else output
    if file is not None and (len(sources) > 1 or any(Path(name).is_dir() for name in inputs)):
        if file == PIPE or Path(file).is_file() or single(file):
            raise DataError(f"--output: {file} is one file, for {len(sources)}; name a folder")
        file = None
    if file is not None:
        jobs = [Job(sources[0].path, file)]
    elif PIPE in inputs:
        if output is not None:
            raise DataError("-: standard input has no name to make another from; name the output")
        jobs = [Job(PIPE, PIPE)]
    else:
        jobs = [Job(found.path, _target(found, output, suffix)) for found in sources]
    _check_distinct(jobs)
    if skip_existing:
        left = [job for job in jobs if job.target == PIPE or not Path(job.target).exists()]
        return Plan(left, len(jobs) - len(left))
    if file is None and not force:
        _check_free(jobs)
    return Plan(jobs, 0)


def _check_no_result(
    inputs: Sequence[str], single: Callable[[str], bool], readable: Callable[[str], bool]
) -> None:
    for name in inputs:
        if single(name) and not Path(name).is_dir() and not readable(name):
            raise DataError(
                f"{name}: is given as an input and holds none; to write to it, give -o {name}"
            )


def contents_of(source: str) -> bytes:
    """The bytes of a file, or of standard input.

    Raises:
        DataError: if they cannot be read.
    """
    try:
        return sys.stdin.buffer.read() if source == PIPE else Path(source).read_bytes()
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror})") from None


@contextmanager
def named(source: str) -> Iterator[None]:
    """Put the file's name in front of what is wrong with it."""
    try:
        yield
    except BitstreamError as error:
        raise BitstreamError(f"{source}: {error}") from None


def _is_folder(output: str) -> bool:
    return output != PIPE and (output.endswith(("/", os.sep)) or Path(output).is_dir())


def _files(name: str, suffix: str, accepts: Callable[[str], bool]) -> Iterator[_Input]:
    """The files that an input stands for: itself, or those in and below a folder, by name."""
    if name == PIPE or not Path(name).is_dir():
        yield _Input(name, Path(_named(Path(name).stem, suffix)))
        return
    found = False
    for folder, folders, files in os.walk(name):
        folders[:] = sorted(inner for inner in folders if not inner.startswith("."))
        for file in sorted(files):
            if accepts(file) and not file.startswith("."):
                found = True
                path = Path(folder, file)
                within = path.relative_to(name).with_name(_named(path.stem, suffix))
                yield _Input(str(path), within)
    if not found:
        raise DataError(f"{name}: has no files to read in it")


def _named(stem: str, suffix: str) -> str:
    """A file name of at most `LONGEST_NAME` bytes: a long stem loses its end."""
    room = LONGEST_NAME - len(os.fsencode(suffix))
    while len(os.fsencode(stem)) > room:
        stem = stem[:-1]
    return stem + suffix


def _target(found: _Input, output: str | None, suffix: str) -> str:
    if output is None:
        return str(Path(found.path).with_name(_named(Path(found.path).stem, suffix)))
    return str(Path(output) / found.within)


def _check_distinct(jobs: Sequence[Job]) -> None:
    taken: dict[str, str] = {}
    for source, target in jobs:
        if target in taken:
            raise DataError(
                f"{source}: {target} would be written twice, {taken[target]} gives it too; "
                "give folders of their own"
            )
        taken[target] = source
        if target != PIPE and Path(target).resolve() == Path(source).resolve():
            raise DataError(
                f"{source}: would be overwritten by its own result; name another --output"
            )


def _check_free(jobs: Sequence[Job]) -> None:
    there = [job.target for job in jobs if job.target != PIPE and os.path.lexists(job.target)]
    if there:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        are = "are" if more else "is"
        raise DataError(
            f"{there[0]}{more} {are} there already; --force replaces, --skip-existing leaves out, "
            "--output names another place"
        )

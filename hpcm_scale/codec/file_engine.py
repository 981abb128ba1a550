"""The engine for some files to decode, where none is named: the cheaper by what they hold."""

from collections.abc import Iterable
from pathlib import Path

from hpcm_scale.codec import container
from hpcm_scale.codec.engines.choose import NUMPY_WORK, Name, cheaper_engine, has_torch
from hpcm_scale.codec.file_jobs import PIPE
from hpcm_scale.codec.find_model import Catalogue
from hpcm_scale.errors import HpcmError
from hpcm_scale.weights.stored_model import files_of, read_info


def engine_for_files(sources: Iterable[str], model: str | None = None) -> Name:
    """The engine that decodes files on the CPU at the lower cost, its start included.

    torch where a file has not exact pixels, comes through a pipe or is of another architecture than
    HPCM, and where all of them are more work than `NUMPY_WORK`; else NumPy, whose pixels are the
    same. A file that cannot be read or has no model here is left to the decoder to refuse.

    Args:
        model: as `Catalogue.find` takes it; None for the one that made each file.
    """
    if not has_torch():
        return "numpy"
    catalogue = Catalogue(noted=False)
    work = 0
    for source in sources:
        if source == PIPE:
            return "torch"
        try:
            header = container.read(Path(source).read_bytes()).header
            path = catalogue.find(model, header.identity)
            config = read_info(path).config
            size = sum(file.stat().st_size for file in files_of(path))
        except (HpcmError, OSError):
            continue
        if header.pixel_digest is None or config.architecture != "hpcm":
            return "torch"
        work += size * header.width * header.height
        if work > NUMPY_WORK:
            break
    return cheaper_engine(work)

"""The model file that a user means: by its path or name, by a picture's identity, by a rate."""

import logging
import os
from functools import cached_property
from pathlib import Path

from hpcm_scale.codec.aim import HIGHEST_QUALITY, LOWEST_QUALITY
from hpcm_scale.errors import ArgumentError, CheckpointError
from hpcm_scale.weights.model_info import ModelInfo
from hpcm_scale.weights.stored_model import BUNDLED, model_name, models_in, read_info

log = logging.getLogger(__name__)


class Catalogue:
    """The models that need no path: those of the folder HPCM_MODELS, and the bundled ones.

    Args:
        noted: say which files of the folder are passed over, as they are no models.
    """

    def __init__(self, noted: bool = True) -> None:
        self._noted = noted
        self._folder = os.environ.get("HPCM_MODELS") or None
        self._own = {} if self._folder is None else models_in(self._folder)
        if noted and self._folder is not None and not Path(self._folder).is_dir():
            log.warning("note: HPCM_MODELS=%s is not a folder", self._folder)
        self._bundled = models_in(BUNDLED)

    def find(
        self, name: str | Path | None, identity: bytes | None = None, quality: float | None = None
    ) -> Path:
        """A model file.

        Args:
            name: a path, or the name of a model; None for the one that fits.
            identity: what the picture to decode carries; picks the model when `name` is None.
            quality: asked for where neither of the others is given. The models looked at are those
                of HPCM_MODELS, or the bundled ones if it has none. One of many rates is taken
                whatever the quality; else 1 is the model of the lowest rate, 2 the next, ..., and
                None the middle one.

        Raises:
            CheckpointError: if there is no such model.
            ArgumentError: for a quality that none of the models has.
        """
        if name is not None:
            return self._by_name(str(name))
        if identity is not None:
            for path, info in [*self._own_infos.items(), *self._bundled_infos.items()]:
                if info.identity.startswith(identity.hex()):
                    return path
            raise CheckpointError(
                f"made by model {identity.hex()}, which is not here ({self._listed()}); name its "
                "file with --model"
            )
        return self._by_rate(quality)

    def at_quality(self, quality: float) -> Path:
        """The model for a quality from 1 to 100, of HPCM_MODELS if it has one, or bundled.

        One of many rates; else the one whose place among those of one rate each is the nearest.

        Raises:
            CheckpointError: if there is none.
        """
        for infos in (self._own_infos, self._bundled_infos):
            if many := _of_many_rates(infos):
                return many[0]
            if by_rate := _by_lambda(infos):
                share = (quality - LOWEST_QUALITY) / (HIGHEST_QUALITY - LOWEST_QUALITY)
                return by_rate[round(share * (len(by_rate) - 1))]
        raise CheckpointError(f"there is no model for a quality ({self._listed()})")

    def names(self) -> list[str]:
        """The names that `find` knows."""
        return sorted(self._bundled | self._own)

    def note_faults(self) -> None:
        """Say which files of HPCM_MODELS are no models, if any, for the first time."""
        _ = self._own_infos

    @cached_property
    def _own_infos(self) -> dict[Path, ModelInfo]:
        return _infos(self._own, self._noted)

    @cached_property
    def _bundled_infos(self) -> dict[Path, ModelInfo]:
        return _infos(self._bundled, noted=False)

    def _by_name(self, name: str) -> Path:
        if Path(name).is_file():
            return Path(name)
        found = (self._bundled | self._own).get(model_name(name))
        if found is None:
            raise CheckpointError(f"{name}: there is no such file, and {self._listed()}")
        return found

    def _by_rate(self, quality: float | None) -> Path:
        if quality is None and len(self._own_infos) == 1:
            return next(iter(self._own_infos))
        if many := _of_many_rates(self._own_infos):
            return many[0]
        by_rate = _by_lambda(self._own_infos)
        if not by_rate and (quality is not None or not self._own_infos):
            if many := _of_many_rates(self._bundled_infos):
                return many[0]
            by_rate = _by_lambda(self._bundled_infos)
        if not by_rate:
            raise CheckpointError(f"name a model ({self._listed()})")
        if quality is None:
            quality = (len(by_rate) + 1) // 2
        if not (1 <= quality <= len(by_rate) and quality == int(quality)):
            raise ArgumentError(
                f"quality: {quality:g} is not one of 1 to {len(by_rate)}, as many as there are "
                "models, of one rate each"
            )
        return by_rate[int(quality) - 1]

    def _listed(self) -> str:
        bundled = f"the bundled models are {', '.join(self._bundled) or 'none'}"
        if self._folder is None:
            return bundled
        return f"HPCM_MODELS={self._folder} has {', '.join(self._own) or 'none'}; {bundled}"


def _by_lambda(infos: dict[Path, ModelInfo]) -> list[Path]:
    """Models by rising rate; what names no λ, as some imported ones do, has no place there."""
    rates = {path: info.lmbda for path, info in infos.items() if info.lmbda is not None}
    return sorted(rates, key=rates.__getitem__)


def _of_many_rates(infos: dict[Path, ModelInfo]) -> list[Path]:
    """Models that code at every rate, those of most λ first."""
    many = [path for path, info in infos.items() if info.config.rates]
    return sorted(many, key=lambda path: -len(infos[path].config.rates))


def find_model(
    name: str | Path | None, identity: bytes | None = None, quality: float | None = None
) -> Path:
    """A model file, as `Catalogue.find`."""
    return Catalogue().find(name, identity, quality)


def _infos(models: dict[str, Path], noted: bool) -> dict[Path, ModelInfo]:
    """The descriptions of those files that are models."""
    infos = {}
    for path in models.values():
        try:
            infos[path] = read_info(path)
        except CheckpointError as error:
            if noted:
                log.warning("note: passed over in HPCM_MODELS: %s", error)
    return infos

"""The one family of errors a user can cause; the CLI prints each on one line and exits with code 2."""


class HpcmError(Exception):
    """Something the user can put right. The message names the file or field, the value and the remedy."""


class ConfigError(HpcmError):
    """A configuration that cannot be used: unknown key, value out of range, parts that do not fit."""


class DataError(HpcmError):
    """Photos, shards or manifests that are missing, damaged or disagree with each other."""


class CheckpointError(HpcmError):
    """A checkpoint or model file that is missing, damaged or not what was asked for."""


class BitstreamError(HpcmError):
    """A compressed file that is damaged, absurd, or made by another model."""


class RunError(HpcmError):
    """A run, or a set of run records, that cannot be used as asked."""

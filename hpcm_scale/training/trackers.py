"""Where rows of metrics go beside metrics.jsonl: TensorBoard, Trackio, Weights & Biases, MLflow.

By each library's own interface and without a network, unless its usual variables (WANDB_MODE,
MLFLOW_TRACKING_URI, TRACKIO_DIR) say otherwise. accelerate's trackers would need a process state
of accelerate's own beside DeepSpeed's. Rows that a resumed run takes again are sent again:
TensorBoard drops the first ones, the others keep both.
"""

import hashlib
import os
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

from torch import Tensor

from hpcm_scale.config import RunConfig
from hpcm_scale.errors import MissingPackage, RunError, missing_package, one_line

MODULES = {
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
    "mlflow": "mlflow",
}
"""Values of RunConfig.trackers that need a package -> its module."""


class Tracker(Protocol):
    """One session of a run, as one library keeps it."""

    def scalars(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        """Figures after `step` steps: of "train", "val", ..., or "events"."""

    def image(self, name: str, step: int, image: Tensor) -> None:
        """A picture (C, H, W) in [0, 1]; libraries that take none leave it out."""

    def close(self) -> None:
        """Write what is left to write."""


def check_trackers(run: RunConfig) -> None:
    """
    Raises:
        MissingPackage: naming the first of the run's trackers that is not installed.
    """
    for name in run.trackers:
        module = MODULES.get(name)
        if module is not None and find_spec(module) is None:
            missing = missing_package(ModuleNotFoundError(name=module))
            assert missing is not None  # each of MODULES is of an extra
            raise MissingPackage(f"trackers: {name}: {missing}")


def open_trackers(run: RunConfig, step: int) -> dict[str, Tracker]:
    """The run's trackers by name, at the start of a session after `step` steps.

    Raises:
        RunError: naming the one that cannot be opened, such as a server that does not answer.
    """
    kinds = {
        "tensorboard": lambda: TensorBoard(run, step),
        "trackio": lambda: Trackio(run),
        "wandb": lambda: WeightsAndBiases(run),
        "mlflow": lambda: MLflow(run),
    }
    opened: dict[str, Tracker] = {}
    for name in dict.fromkeys(run.trackers):
        if name in kinds:
            try:
                opened[name] = kinds[name]()
            except OSError:
                raise
            except Exception as error:
                raise RunError(
                    f"trackers: {name} cannot be opened ({type(error).__name__}: "
                    f"{one_line(error)}); put that right or take it out of the run's `trackers`"
                ) from error
    return opened


def _identity(run: RunConfig) -> str:
    """What tells a run from all others: sessions of one folder are one run."""
    return hashlib.sha256(str(run.folder.absolute()).encode()).hexdigest()[:16]


def _project(run: RunConfig) -> str:
    """Runs beside each other are compared with each other."""
    return run.out.absolute().name or "hpcm_scale"


class TensorBoard:
    """Event files in the run's tensorboard/: `tensorboard --logdir` and the folder of runs."""

    def __init__(self, run: RunConfig, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(run.folder / "tensorboard", purge_step=step + 1)

    def scalars(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(f"{name}/{kind}", value, step)

    def image(self, name: str, step: int, image: Tensor) -> None:
        self._writer.add_image(name, image, step)

    def close(self) -> None:
        self._writer.close()


class _Library:
    """What the others have in common: no pictures, and figures named as TensorBoard's."""

    def __init__(self, module: str) -> None:
        self.library: Any = import_module(module)

    def scalars(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        self.log({f"{name}/{kind}": value for name, value in figures.items()}, step)

    def log(self, values: dict[str, float], step: int) -> None:
        """Hand figures to the library."""
        raise NotImplementedError

    def image(self, name: str, step: int, image: Tensor) -> None:
        """Left out."""


class Trackio(_Library):
    """A local database in TRACKIO_DIR, by default trackio/ beside the runs: `trackio show`."""

    def __init__(self, run: RunConfig) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(run.out.absolute() / "trackio"))
        super().__init__("trackio")
        self._run = self.library.init(
            project=_project(run),
            name=run.name,
            config=run.model_dump(mode="json"),
            resume="allow",
            embed=False,
        )

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class WeightsAndBiases(_Library):
    """Files in wandb/ of the run's folder, for `wandb sync`; WANDB_MODE=online sends at once."""

    def __init__(self, run: RunConfig) -> None:
        super().__init__("wandb")
        self._run = self.library.init(
            project=_project(run),
            name=run.name,
            id=_identity(run),
            dir=run.folder,
            config=run.model_dump(mode="json"),
            resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=self.library.Settings(silent=True),
        )

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow(_Library):
    """MLFLOW_TRACKING_URI, by default the database mlflow.db beside the runs: `mlflow ui`."""

    TAG = "hpcm_scale.run"

    def __init__(self, run: RunConfig) -> None:
        super().__init__("mlflow")
        default = f"sqlite:///{run.out.absolute() / 'mlflow.db'}"
        self._client = self.library.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", default))
        found = self._client.get_experiment_by_name(_project(run))
        experiment = found.experiment_id if found else self._client.create_experiment(_project(run))
        identity = _identity(run)
        runs = self._client.search_runs([experiment], f"tags.`{self.TAG}` = '{identity}'")
        if runs:
            self._id = runs[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        made = self._client.create_run(experiment, tags={self.TAG: identity}, run_name=run.name)
        self._id = made.info.run_id
        for name, value in run.model_dump(mode="json").items():
            self._client.log_param(self._id, name, str(value))

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)

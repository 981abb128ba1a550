"""The verb that trains one run."""

import json
import sys
from pathlib import Path

import typer

from hpcm_scale.cli.program import app

RUN, JOB = "The run", "The job"


@app.command()
def train(
    config: Path = typer.Argument(help="The run: a YAML file such as configs/runs/base.yaml."),
    changes: list[str] = typer.Option(
        [],
        "--set",
        metavar="KEY=VALUE",
        help="A field over the file, dotted: optimizer.lr=1e-4. May be repeated.",
        rich_help_panel=RUN,
    ),
    init: str = typer.Option(
        None,
        metavar="MODEL",
        help="Fine-tune: start from a model file, imported, exported or bundled, and its network.",
        rich_help_panel=RUN,
    ),
    freeze: str = typer.Option(
        None,
        metavar="PART,PART",
        help="Parts of the network that keep their weights: g_a,h_a.",
        rich_help_panel=RUN,
    ),
    resume: str = typer.Option(
        "never",
        metavar="auto|CHECKPOINT",
        help="auto starts the run or resumes it from its newest good checkpoint; the folder of "
        "another run's checkpoint starts this run from there.",
        rich_help_panel=RUN,
    ),
    dry_run: bool = typer.Option(
        False,
        "--dry-run",
        help="Only check configuration, data, disk and memory, and say what the run will do.",
        rich_help_panel=RUN,
    ),
    accelerators: int = typer.Option(
        1,
        "-n",
        "--accelerators",
        min=1,
        help="Ranks on this host, one an accelerator; more than one go through the deepspeed "
        "launcher. For many hosts: launch/multinode.sh, slurm.sbatch, kubernetes.yaml.",
        rich_help_panel=JOB,
    ),
) -> None:
    """Train one run, or resume it.

    SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 make it save and stop. Exit codes: 0 finished, 2 what
    only you can put right, 75 stopped and saved, 76 a rank was lost.
    """
    from hpcm_scale.cli import rank
    from hpcm_scale.config import load_run
    from hpcm_scale.training import launcher

    changes = list(changes)
    if init is not None:
        changes.append(f"init={json.dumps(init)}")
    if freeze is not None:
        changes.append(f"optimizer.freeze={json.dumps(freeze.split(','))}")
    run = load_run(config, changes)  # what is wrong with it is said before any rank starts
    if dry_run:
        rank.dry_run(run, resume, accelerators)
        return
    launcher.check_accelerators(accelerators)
    arguments = ["--config", str(config), "--resume", resume]
    arguments += [part for change in changes for part in ("--set", change)]
    if accelerators == 1:
        rank.main(arguments)
    else:
        sys.exit(launcher.launch(accelerators, arguments))

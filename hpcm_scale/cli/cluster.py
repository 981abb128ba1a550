"""The verbs that look at hardware before a run does: planned, and present."""

import json
from dataclasses import asdict
from pathlib import Path

import typer

from hpcm_scale.cli.program import app, console

HARDWARE, INSTEAD = "Assumed of the hardware", "Instead of a plan"


@app.command()
def plan(
    model: str = typer.Option("1b", help="A variant of configs/models."),
    width: float = typer.Option(1.0, help="Width multiplier."),
    depth: float = typer.Option(1.0, help="Depth multiplier."),
    hosts: int = typer.Option(1, min=1, help="Hosts."),
    accelerators: int = typer.Option(8, min=1, help="Accelerators of a host."),
    memory: str = typer.Option("80GiB", help="Memory of an accelerator."),
    host_memory: str = typer.Option("1TiB", help="Memory of a host."),
    batch: int | None = typer.Option(None, min=1, help="Crops a step [default: 32, or one a rank]"),
    crop: int = typer.Option(256, min=64, help="Side of the crops."),
    crops: float = typer.Option(6.4e7, min=1, help="Crops of the whole run (the papers': 6.4e7)."),
    efficiency: float = typer.Option(
        0.4, min=0.01, max=1, help="Assumed share of the peak.", rich_help_panel=HARDWARE
    ),
    peak: float = typer.Option(
        989e12, min=1, help="Dense bf16 FLOP/s of an accelerator.", rich_help_panel=HARDWARE
    ),
    intra_node_bw: float = typer.Option(
        450e9,
        min=1,
        help="Bytes/s between accelerators of a host.",
        rich_help_panel=HARDWARE,
    ),
    inter_node_bw: float = typer.Option(
        50e9,
        min=1,
        help="Bytes/s of an accelerator to other hosts.",
        rich_help_panel=HARDWARE,
    ),
    price: float = typer.Option(
        2.5, min=0, help="Of an accelerator-hour.", rich_help_panel=HARDWARE
    ),
    record: str | None = typer.Option(
        None,
        help="A record of launch/gpu_check.sh to take instead of assumptions, or none [default: "
        "the newest of a GPU in launch/records]",
    ),
    h100_report: bool = typer.Option(
        False,
        "--h100-report",
        help="A page on 8, 64 and 512 H100s instead (H100_ESTIMATES.md).",
        rich_help_panel=INSTEAD,
    ),
    measure: bool = typer.Option(
        False,
        "--measure",
        help="Hold predicted memory against real runs on this CPU.",
        rich_help_panel=INSTEAD,
    ),
) -> None:
    """Memory, traffic, time and cost of training on a cluster, and which settings to take."""
    from hpcm_scale.errors import ConfigError
    from hpcm_scale.models.zoo import model_config
    from hpcm_scale.planning.cluster_plan import Cluster, plan_cluster
    from hpcm_scale.planning.measured import Measured, newest_record
    from hpcm_scale.units import parse_size

    if measure:
        from hpcm_scale.bench.train_memory import measure_memory

        console.print(measure_memory())
        return
    config = model_config(model, width, depth)
    if h100_report:
        from hpcm_scale.planning.h100_estimates import page

        console.print(page(config), soft_wrap=True, highlight=False, markup=False)
        return
    cluster = Cluster(
        hosts=hosts,
        accelerators=accelerators,
        memory=parse_size("--memory", memory),
        host_memory=parse_size("--host-memory", host_memory),
        peak=peak,
        efficiency=efficiency,
        intra_node_bw=intra_node_bw,
        inter_node_bw=inter_node_bw,
        price=price,
    )
    path = newest_record() if record is None else None if record == "none" else Path(record)
    if path is not None:
        found = Measured.load(path)
        if found.accelerator != "cuda":
            raise ConfigError(
                f"--record: {path} was measured on a CPU ({found.device}), which tells nothing of "
                "accelerators; run launch/gpu_check.sh on one"
            )
        cluster = cluster.measured(found, config.name)
    ranks = cluster.ranks
    shared = batch or max(1, round(32 / ranks)) * ranks
    result = plan_cluster(config, cluster, batch=shared, crop=crop, images=crops)
    console.print(result)
    _ = result.best  # says so, and exits with 2, where nothing fits


@app.command()
def doctor(
    hostfile: Path | None = typer.Option(None, help="Hosts to look at; without: this machine."),
    data: str | None = typer.Option(None, help="A dataset they all need: compared by manifest."),
    out: Path | None = typer.Option(None, help="A folder they must share: the runs' `out`."),
    port: int = typer.Option(
        29500, min=1, max=65535, envvar="MASTER_PORT", help="Where the ranks are to meet."
    ),
    available: Path | None = typer.Option(
        None,
        metavar="RUN",
        help="Print instead a hostfile of those that answer, as many as can share this run's "
        "batch; exit code 1 if none can.",
    ),
    changes: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="With --available: a field over the run's file."
    ),
    report: bool = typer.Option(
        False, "--report", hidden=True, help="What this host says of itself, as JSON."
    ),
    token: Path | None = typer.Option(None, hidden=True, help="A file that hosts should share."),
) -> None:
    """Whether hosts are fit for a job together: exit code 1, and what to do, if not.

    ssh, clocks, Python, packages, code, accelerators, data, shared storage, the port, compilers
    for DeepSpeed's operators, and an all-reduce of known result with its bandwidth.
    """
    from hpcm_scale.cluster.doctor import examine_hosts, examine_this, table
    from hpcm_scale.cluster.hosts import read_hostfile

    if report:
        from hpcm_scale.cluster.host_report import host_report

        said = asdict(host_report(data, token and str(token), port))
        typer.echo(json.dumps(said))
        return
    if available is not None:
        _print_available(hostfile, available, changes)
        return
    if hostfile is None:
        rows = examine_this(data, out, port)
    else:
        rows = examine_hosts(read_hostfile(hostfile), data, out, port)
    console.print(table(rows))
    if any(row.remedy for row in rows):
        raise typer.Exit(1)


def _print_available(hostfile: Path | None, run: Path, changes: list[str]) -> None:
    """A hostfile on stdout, what is left out on stderr."""
    from hpcm_scale.cluster.available_hosts import available_hosts
    from hpcm_scale.config import load_run
    from hpcm_scale.errors import ConfigError

    if hostfile is None:
        raise ConfigError("--available: needs --hostfile")
    chosen, left_out = available_hosts(hostfile, load_run(run, changes))
    for line in left_out:
        typer.echo(f"doctor: {line}", err=True)
    for host in chosen:
        typer.echo(str(host))
    if not chosen:
        raise typer.Exit(1)

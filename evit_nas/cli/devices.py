"""Verbs about places to measure: devices, device check, worker."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from evit_nas.cli.app import FormatOption, app, conditions_of
from evit_nas.cli.latency import report_findings
from evit_nas.console import Format, emit, make_table, say


@app.command()
def devices(format_: FormatOption = Format.table) -> None:
    """List what can measure here, and why the others cannot."""
    from evit_nas.latency.runtimes import list_runtimes

    infos = list_runtimes()
    rows = [
        {"device": i.name, "what": i.what, "precisions": list(i.precisions), "version": i.version, "missing": i.missing}
        for i in infos
    ]
    remote = "remote:HOST", "a board that runs evit-nas worker"
    rows.append({"device": remote[0], "what": remote[1], "precisions": [], "version": None, "missing": None})
    cells = [[i.name, f"{i.what}, {'/'.join(i.precisions)}", i.version or f"no: {i.missing}"] for i in infos]
    cells.append([*remote, ""])
    columns = ["device", "what", "here"]
    emit(rows, format_, make_table("--device", columns, cells, text=columns))
    if format_ is Format.table:
        say("one device is proved, a board too, by: evit-nas device check NAME")


device = typer.Typer(help="Check one device before a search.", no_args_is_help=True)
app.add_typer(device, name="device")


@device.callback()
def _device() -> None:
    """Keeps `check` a word of its own while it is the only one."""


@device.command()
def check(
    name: Annotated[str, typer.Argument(metavar="DEVICE", help="As given to --device: remote:pi, cpu, cuda:1.")],
    format_: FormatOption = Format.table,
) -> None:
    """Prove a device before a search.

    Shown are the link, versions, the load, and the canary measured against itself.
    """
    from evit_nas.doctor import examine

    report_findings(examine(conditions_of(name, None, 1, None, None)), name, format_)


@app.command()
def worker(
    device: Annotated[str, typer.Option(metavar="NAME", help="What measures here: cpu, cpu-int8, cuda, ...")] = "cpu",
    bind: Annotated[str, typer.Option(help="Address to listen on; beyond loopback a token is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any free one.")] = 8642,
) -> None:
    """Measure here for searches on other machines, until Ctrl-C.

    There, this tunnel makes it --device remote:localhost:
      ssh -N -L 8642:127.0.0.1:8642 BOARD

    A token, if you need one, goes into EVIT_NAS_TOKEN on both sides.
    """
    import logging

    from evit_nas.latency.link import TOKEN_VARIABLE
    from evit_nas.latency.worker import WorkerServer

    logging.getLogger("evit_nas.worker").setLevel(logging.INFO)
    server = WorkerServer(device, bind=bind, port=port, token=os.environ.get(TOKEN_VARIABLE, ""))
    host, at = server.address
    say(f"measuring on {device} for http://{f'[{host}]' if ':' in host else host}:{at}; Ctrl-C ends it")
    server.run()

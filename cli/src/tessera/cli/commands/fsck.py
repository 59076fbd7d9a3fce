"""`tessera node fsck`: does what the nodes say about their stores agree with what is there?"""

from __future__ import annotations

from typing import Annotated

import typer

from tessera.cli import views
from tessera.cli.commands.inspect import node
from tessera.cli.connection import EndpointOption, StateOption, connect
from tessera.cli.output import EXIT_FAILED, Format, OutputOption, exit_codes, mebibytes, show


def fsck(
    name: Annotated[str, typer.Option("--node", help="one node; without it all of them")] = "",
    deep: Annotated[bool, typer.Option("--deep", help="hash every blob as well")] = False,
    endpoint: EndpointOption = None,
    state: StateOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Compares every store with the disk, with what runtimes declare, and with what the kernel maps; exit code 1 when something differs."""
    with exit_codes(), connect(endpoint, state) as client:
        nodes = [name] if name else sorted(each.node_id for each in client.nodes())
        checked = [views.store_check(each, client.check_stores(each, deep=deep)) for each in nodes]
        if output is Format.TABLE:
            rows = [
                {
                    "node": each["node"],
                    "stores": each["stores"],
                    "blobs": each["blobs"],
                    "bytes": mebibytes(each["bytes"]),
                    "unlinked": mebibytes(each["unlinked_bytes"]),
                    "findings": len(each["findings"]),
                }
                for each in checked
            ]
            show(checked, output, rows=rows)
            for each in checked:
                for finding in each["findings"]:
                    print(f"{each['node']}, trust domain {finding['trust_domain']}: {finding['words']}")
        else:
            show(checked, output, name=lambda item: item["node"])
        if any(each["findings"] for each in checked):
            raise typer.Exit(EXIT_FAILED)


def register(app: typer.Typer) -> None:
    node.command("fsck")(fsck)

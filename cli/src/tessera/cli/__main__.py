"""The `tessera` command: python -m tessera.cli, or the script `tessera`."""

from __future__ import annotations

import typer

from tessera.cli.commands import aliases, batch, fsck, infer, inspect, models, plans, platform, profiles

app = typer.Typer(
    name="tessera",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Serve any registered model within milliseconds. Exit codes: 0 ok, 1 failed, 2 usage, 3 timed out.",
)
for group in (platform, models, aliases, profiles, infer, batch, inspect, plans, fsck):
    group.register(app)


def main() -> None:
    app()


if __name__ == "__main__":
    main()

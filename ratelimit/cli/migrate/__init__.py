"""`ratelimit migrate SOURCE`, `ratelimit migrate verify SOURCE`: from another home to the one table."""

import typer
from typer.core import TyperGroup

from ratelimit.cli.migrate import mapping, run, undo, verify


class _RunByDefault(TyperGroup):
    """`ratelimit migrate SOURCE --dry-run` is `ratelimit migrate run SOURCE --dry-run`."""

    def parse_args(self, ctx, args):  # type: ignore[no-untyped-def]
        """With the command that is meant put in."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault,
    help="Bring plans, users, usage events and running counters over from a database, files or another table.",
    epilog="`ratelimit migrate SOURCE` is short for `ratelimit migrate run SOURCE`. The source is never changed.",
    no_args_is_help=True,
)
app.command("run")(run.run)
app.command("verify")(verify.verify)
app.command("undo")(undo.undo)
app.command("mapping")(mapping.mapping)

__all__ = ["app"]

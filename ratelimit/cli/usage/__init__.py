"""`ratelimit usage ...`: read the usage log, take it out, bring it in, erase a user."""

import typer

from ratelimit.cli.usage import moving, reading

app = typer.Typer(
    help="The usage log: events and exact totals, read, exported, imported, erased.",
    epilog="Days are UTC. Events are kept for 90 days, daily totals for 35.",
)
app.command("events")(reading.events)
app.command("summary")(reading.summary)
app.command("totals")(reading.totals)
app.command("top")(reading.top)
app.command("reconcile")(reading.reconcile)
app.command("export")(moving.export)
app.command("import")(moving.import_)
app.command("erase")(moving.erase)

__all__ = ["app"]

"""`manage.py ratelimit create|status|verify`: the `ratelimit table` of that name, for `settings.RATELIMIT`."""

from __future__ import annotations

import sys
from argparse import SUPPRESS, Action
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, Final

import typer
from django.core.management.base import BaseCommand, CommandError, CommandParser

from ratelimit.cli import run
from ratelimit.cli.output import INVALID
from ratelimit.cli.table import app as table_app
from ratelimit.django.middleware import settings_of
from ratelimit.errors import ConfigError
from ratelimit.factory import load_checked

COMMANDS: Final = ("create", "status", "verify")


class Command(BaseCommand):  # type: ignore[misc]
    """Hands its options to the `ratelimit` command, whose exit status it leaves with where that is not 0."""

    help = "Create, look at or verify the table of settings.RATELIMIT. Exit status as of `ratelimit table`."
    requires_system_checks: Final = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Take what `create` and `verify` of the `ratelimit` command take; `status` takes `--json`."""
        parser.set_defaults(given=())
        parser.add_argument("command", choices=COMMANDS)
        commands: Any = typer.main.get_command(table_app)
        for option in commands.commands["create"].params:
            if option.param_type_name == "argument":
                parser.add_argument("table", nargs="?", action=_Given, default=SUPPRESS, help=option.help)
                continue
            nargs = 0 if option.is_flag else None
            for names in filter(None, (option.opts, option.secondary_opts)):
                parser.add_argument(*names, nargs=nargs, action=_Given, default=SUPPRESS, help=option.help)

    def handle(self, *_: str, command: str, given: Sequence[str], **__: Any) -> None:
        """Run it. An error in the settings is told with its path."""
        try:
            settings = {name: value for name, value in settings_of().items() if name not in ("on_refused", "on_alert")}
            store = load_checked(**settings).store
        except ConfigError as error:
            raise CommandError(str(error), returncode=INVALID) from None
        self.stdout.ending = self.stderr.ending = ""
        with redirect_stdout(self.stdout), redirect_stderr(self.stderr):
            status = run(["table", command, "--store", store, *given])
        if status:
            sys.exit(status)


class _Given(Action):
    """Keeps an option as it was written, for the command that reads it."""

    def __call__(self, parser: object, namespace: Any, values: Any, name: str | None = None) -> None:
        written = [] if values in ([], None) else [values]
        namespace.given = (*namespace.given, *([name] if name else []), *written)

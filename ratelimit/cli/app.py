"""The command itself: which commands there are, and how every error becomes one line and an exit status."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated, Final, NoReturn

import typer

import ratelimit
from ratelimit.cli.check import check
from ratelimit.cli.config import app as config_app
from ratelimit.cli.cost import cost
from ratelimit.cli.demo import app as demo_app
from ratelimit.cli.deploy import app as deploy_app
from ratelimit.cli.directory import plans, users
from ratelimit.cli.loadtest import app as loadtest_app
from ratelimit.cli.migrate import app as migrate_app
from ratelimit.cli.output import INVALID, REFUSED, UNAVAILABLE, complain
from ratelimit.cli.serve import serve
from ratelimit.cli.table import app as table_app
from ratelimit.cli.top import top
from ratelimit.cli.usage import app as usage_app
from ratelimit.errors import ConfigError, RateLimitError, StoreUnavailable

app: Final = typer.Typer(
    name="ratelimit",
    help="Exact rate limits on one DynamoDB table, or in memory.",
    epilog="Exit status: 0 done (or allowed), 1 refused, 2 bad input, 3 the store is unavailable.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command()(check)
app.command()(serve)
app.command()(top)
app.command()(cost)
app.add_typer(config_app, name="config")
app.add_typer(table_app, name="table")
app.add_typer(deploy_app, name="deploy")
app.add_typer(plans, name="plan")
app.add_typer(users, name="user")
app.add_typer(usage_app, name="usage")
app.add_typer(migrate_app, name="migrate")
app.add_typer(loadtest_app, name="loadtest")
app.add_typer(demo_app, name="demo")

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
# What typer raises for a command line it cannot read; the class itself has no public name in every version of it.
_UsageError: Final[type[Exception]] = typer.BadParameter.mro()[1]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version; `compiled` is said if it is.")] = False,
) -> None:
    if version:
        _refuse_namesake()
        typer.echo(f"{ratelimit.__version__} (compiled)" if ratelimit.COMPILED else ratelimit.__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _refuse_namesake() -> None:
    """PyPI's `ratelimit` is another project that has its files in the same folder: the last one installed has
    overwritten the other's. Raises `ConfigError`."""
    try:
        theirs = metadata.version("ratelimit")
    except metadata.PackageNotFoundError:
        return
    how = "pip uninstall ratelimit, then pip install --force-reinstall --no-deps ratelimit-dynamodb"
    raise ConfigError("ratelimit", f"PyPI's {theirs}, another project, is installed in the same folder: {how}")


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run a command line (the process's own by default) and leave with its exit status."""
    # Whoever has closed them (`>&-`) wants to hear nothing.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    status = run(args)
    try:
        sys.stdout.flush()
    except OSError:  # which was told; the interpreter would try once more, and leave with a status of its own
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def run(args: Sequence[str] | None) -> int:
    """Run a command line, and return its exit status."""
    try:
        status = app(args, prog_name="ratelimit", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except StoreUnavailable as error:
        return complain(error, UNAVAILABLE)
    except RateLimitError as error:
        return complain(error, INVALID)
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        return complain(f"standard output cannot be written: {error.strerror}", REFUSED)
    except typer.Abort:
        return complain("given up; nothing was done", 1)
    except _UsageError as error:
        return complain(_usage(error), INVALID)


def _usage(error: Exception) -> str:
    """The message, and which help to ask for."""
    message = getattr(error, "format_message", error.__str__)()
    context = getattr(error, "ctx", None)
    command = "ratelimit" if context is None else context.command_path
    return f"{message.rstrip('.')}; see: {command} --help"

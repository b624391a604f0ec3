"""What a migration has to say at its end: on a terminal, or as one JSON document."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ratelimit.cli.output import in_words, note, say, say_json, say_table

if TYPE_CHECKING:
    from ratelimit.migrate import Counts, Done, Entity, Forecast, Order, Undone, Verdict

_COLUMNS = ("", "read", "written", "already there", "kept as they are", "too old", "rejected")


def say_forecast(order: Order, forecast: Forecast, *, as_json: bool) -> None:
    """Of a dry run."""
    if as_json:
        say_json(msgspec.to_builtins(forecast))
        return
    say("dry run: nothing was written\n")
    columns = ("", "read", "would be written", "too old", "rejected")
    say_table(
        columns,
        [
            (name, *_numbers(each.read, each.written, each.expired, each.rejected))
            for name, each in forecast.counts.items()
        ],
    )
    for entity, samples in forecast.samples.items():
        say(f"{entity}, for example")
        for sample in samples:
            say(f"  {sample}")
    _say_reasons(forecast.counts)
    for samples in forecast.rejected.values():
        for sample in samples:
            say(f"    {sample}")
    at = f"at {order.rate:g} units a second" if order.rate else "at the usual speed, without --rate"
    say(
        f"\nestimate: {forecast.write_units:,} write units, {forecast.dollars:.2f} USD on demand, "
        f"{in_words(forecast.seconds)} {at}"
    )
    for each in forecast.notes:
        note(each)


def say_done(done: Done, *, as_json: bool) -> None:
    """Of a run."""
    counts = done.checkpoint.counts
    if as_json:
        shown = {name: msgspec.to_builtins(each) for name, each in counts.items()}
        say_json(
            {
                "source": done.source, "run": done.run, "counts": shown, "write_units": done.checkpoint.units,
                "seconds": round(done.seconds, 3), "rejects": done.rejects, "notes": done.notes,
            }
        )  # fmt: skip
        return
    say(f"{done.source} is over")
    say_table(_COLUMNS, [(name, *_row(each)) for name, each in counts.items()])
    _say_reasons(counts)
    say(f"{done.checkpoint.units:,.0f} write units, {in_words(done.seconds)}")
    say(f"this was run {done.run}; `ratelimit migrate undo {done.run}` takes it back")
    if done.rejects is not None:
        note(f"the rejected rows are in {done.rejects}, with the reasons")
    for each in done.notes:
        note(each)


def say_verdict(verdict: Verdict, *, as_json: bool) -> None:
    """Of a verification."""
    if as_json:
        say_json(msgspec.to_builtins(verdict))
        return
    say_table(
        ("", "in the source", "in the table", "missing", "more", "different", "rows compared"),
        [
            (name, *_numbers(each.source, each.target, each.missing, each.more, each.different, each.compared))
            for name, each in verdict.entities.items()
        ],
    )
    for one in verdict.differences:
        say(f"  {one.entity}: {one.what}: {one.source} in the source, {one.target} in the table")
    if verdict.hidden:
        say(f"  and {verdict.hidden:,} more")
    say("all of it is there" if verdict.same else "NOT the same")
    for each in verdict.notes:
        note(each)


def say_undone(undone: Undone, *, as_json: bool) -> None:
    """Of what was taken back."""
    if as_json:
        say_json(msgspec.to_builtins(undone))
        return
    say("dry run: nothing was taken back\n" if undone.dry_run else f"taken back: {', '.join(undone.runs)}")
    column = "would be taken back" if undone.dry_run else "taken back"
    say_table(("", column), [(name, f"{count:,}") for name, count in undone.taken_back.items()])
    for each in undone.kept:
        note(f"left as it is: {each}")


def _say_reasons(counts: dict[Entity, Counts]) -> None:
    for name, each in counts.items():
        for reason, count in sorted(each.reasons.items(), key=lambda pair: -pair[1]):
            say(f"  {name}: {count:,} rejected: {reason}")


def _row(counts: Counts) -> tuple[str, ...]:
    return _numbers(counts.read, counts.written, counts.there, counts.kept, counts.expired, counts.rejected)


def _numbers(*several: int) -> tuple[str, ...]:
    return tuple(f"{each:,}" for each in several)

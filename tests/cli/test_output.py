"""What a terminal is shown of what strangers have written."""

from __future__ import annotations

import pytest

from ratelimit.cli.output import say, say_table


def test_no_text_of_a_stranger_commands_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    resource = "/a\x1b[31mX\x1b]0;title\x07\x9b2J\u202eb\r\n/ü"
    say_table(["resource"], [[resource]])
    say(resource)
    shown = capsys.readouterr().out
    assert not set(shown) & set("\x1b\x07\x9b\u202e\r")
    assert shown.count("/a\ufffd[31mX") == shown.count("/ü") == 2

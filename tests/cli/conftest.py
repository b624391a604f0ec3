"""The command under test."""

from tests.cli.command import ratelimit as ratelimit

"""Tests of `ratelimit.django`."""

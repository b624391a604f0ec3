"""Tests of `ratelimit.wsgi`."""

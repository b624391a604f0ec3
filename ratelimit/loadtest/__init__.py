"""The load tests: in a wheel they are here, in the place of this file; in a checkout, the folder beside `ratelimit`."""

from pathlib import Path

__path__ = [str(Path(__file__).parents[2] / "loadtest")]

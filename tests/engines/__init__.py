"""The suite's engine: which one, and the environment that tests run in. `ratelimit.testing.engines` starts it."""

from ratelimit.testing.engines import Engine, EngineError, start
from tests.engines.choice import Choice, choose
from tests.engines.environment import AUTHORITY, isolate

__all__ = ["AUTHORITY", "Choice", "Engine", "EngineError", "choose", "isolate", "start"]

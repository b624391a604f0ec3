"""The suite's engine: which one, and the environment that tests run in. `loadtest.engines` starts it."""

from loadtest.engines import Choice, Engine, EngineError, start
from tests.engines.choice import choose
from tests.engines.environment import isolate

__all__ = ["Choice", "Engine", "EngineError", "choose", "isolate", "start"]

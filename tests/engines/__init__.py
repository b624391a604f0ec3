"""Engines that speak DynamoDB, for the suite: started on a free port, gone when the session ends, however it ends."""

from tests.engines.choice import Choice, EngineError, choose
from tests.engines.engine import Engine
from tests.engines.environment import isolate
from tests.engines.start import start

__all__ = ["Choice", "Engine", "EngineError", "choose", "isolate", "start"]

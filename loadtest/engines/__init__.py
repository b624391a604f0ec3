"""Engines that speak DynamoDB: started on a free port, gone when whoever asked for them is, however that ends."""

from loadtest.engines.engine import REGION, Choice, Engine, EngineError
from loadtest.engines.start import start

__all__ = ["REGION", "Choice", "Engine", "EngineError", "start"]

"""The fast lane: one prepared `UpdateItem` over kept-alive connections, on what botocore resolved."""

from ratelimit.dynamodb.fast.lane import FastLane
from ratelimit.dynamodb.fast.opening import SWITCH, SlowLane, open_lane

__all__ = ["SWITCH", "FastLane", "SlowLane", "open_lane"]

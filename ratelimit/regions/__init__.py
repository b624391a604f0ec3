"""One quota over many regions: which region counts what, on a table with replicas."""

from ratelimit.regions.regions import Regions, RegionsMode

__all__ = ["Regions", "RegionsMode"]

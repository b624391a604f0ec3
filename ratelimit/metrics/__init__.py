"""What there is to count, read when somebody asks: the hot path pays for its own two counters and nothing else."""

from ratelimit.metrics.books import Books
from ratelimit.metrics.families import Family, Sample
from ratelimit.metrics.tally import Tally

__all__ = ["Books", "Family", "Sample", "Tally"]

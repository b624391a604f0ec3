"""`Limiter`, and what it is made of: compiled policies, counters, and a circuit breaker around the store."""

from ratelimit.limiter.background import Alert
from ratelimit.limiter.joint import Spend
from ratelimit.limiter.limiter import Limiter
from ratelimit.limiter.slots import Reservation, Slot

__all__ = ["Alert", "Limiter", "Reservation", "Slot", "Spend"]

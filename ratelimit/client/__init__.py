"""The client side: a transport of httpx that keeps to the limits of others, by what their answers say.

client = httpx.AsyncClient(transport=AsyncRateLimitTransport(httpx.AsyncHTTPTransport()))
"""

from ratelimit.client.limits import WaitTooLong
from ratelimit.client.transport import AsyncRateLimitTransport, RateLimitTransport

__all__ = ["AsyncRateLimitTransport", "RateLimitTransport", "WaitTooLong"]

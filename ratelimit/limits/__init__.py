"""The backend for the library `limits`: `import ratelimit.limits` makes `dynamodb://` and `async+dynamodb://` known.

Then all that takes a storage by its URL takes these: `limits` itself, Flask-Limiter, slowapi.
"""

from __future__ import annotations

from ratelimit.limits.storage import AsyncDynamoDBStorage, DynamoDBStorage

__all__ = ["AsyncDynamoDBStorage", "DynamoDBStorage"]

"""`ratelimit.limits`: the backend of the library `limits`."""

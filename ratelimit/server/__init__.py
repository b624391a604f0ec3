"""All of `ratelimit serve`: listeners, workers, the proxy, reloading, readiness, the admin's backend."""

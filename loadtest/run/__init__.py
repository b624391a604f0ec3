"""One load test from beginning to end: an engine, servers, Locust, the books compared, a report, and nothing left."""

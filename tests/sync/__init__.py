"""The limiter without an event loop: as the asynchronous one, from threads and forked processes."""

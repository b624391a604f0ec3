"""The code under load: each server in a process of its own, with an event loop of its own, apart from gevent."""

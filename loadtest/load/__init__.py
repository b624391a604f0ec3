"""What runs inside of Locust: a schedule at a constant rate, users that keep to it, and the samples they bring back.

Only `locustfile` and `users` import Locust, which replaces half of the standard library when it is imported: they run
in Locust's own process and nowhere else.
"""

"""Many processes on one table, on virtual time: what coalescing and leases do where no test machine is large enough.

It runs the project's own `Limiter`, so its coalescer, denial cache and leases, against a simulated DynamoDB. What is
simulated is the network, the table's capacity and the clock; what decides is the code that is shipped.
"""

"""What it costs: a month's workload, or what a running service consumes, in AWS's prices. Pure: nothing here does I/O
but reading the price file."""

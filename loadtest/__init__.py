"""Load and its measurement: nothing in here is imported by the product."""

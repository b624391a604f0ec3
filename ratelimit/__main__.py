"""`python -m ratelimit`: the same as the `ratelimit` command."""

from ratelimit.cli import main

if __name__ == "__main__":
    main()

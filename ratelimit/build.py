"""Which of the two builds this is: `pyproject.toml` lists what the compiled one makes into C, and this file with it."""

from typing import Final

COMPILED: Final = not __file__.endswith(".py")

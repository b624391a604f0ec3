"""The admin listener: who may ask it."""

"""Django finds it here by its name."""

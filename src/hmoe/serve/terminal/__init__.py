"""A chat in a terminal, over the engine."""

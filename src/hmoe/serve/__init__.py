"""A trained model kept in memory: `engine` continues many texts at a time, `http` and `terminal` ask it."""

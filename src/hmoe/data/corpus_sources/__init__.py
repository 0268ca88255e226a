"""A corpus of several domains from package registries: what is fetched, how it becomes text, what is recorded."""

"""What ten minutes on a GPU are for: eight stages, one command; see `__main__`."""

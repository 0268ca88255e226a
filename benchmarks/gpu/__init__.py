"""What ten minutes on a GPU are for: eight stages, run by one command, which `__main__` describes."""

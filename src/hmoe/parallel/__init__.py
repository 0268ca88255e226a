"""More than one process: what each holds of a model, and what they add up; PyTorch's own engine does it."""

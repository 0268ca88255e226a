"""What a model is worth, measured."""

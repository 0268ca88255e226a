"""What the parts of a model are, as frozen values that need neither torch nor pydantic."""

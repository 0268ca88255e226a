"""What a run is: recipes, checked by pydantic, and what can be counted from them alone.

No torch, so `hmoe plan` answers at once.
"""

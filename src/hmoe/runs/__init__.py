"""Run folders and Hugging Face folders: their lock, what binds them, their logs, and how a model is opened from them."""

"""Run folders and Hugging Face folders: lock, binding of the config, logs, and how a model is opened."""

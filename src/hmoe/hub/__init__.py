"""Models as folders: ours and Hugging Face's, opened, exported, imported; and the Hugging Face classes."""

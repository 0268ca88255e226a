"""Models as folders: a run's, or Hugging Face's of several families, read without transformers and without running code."""

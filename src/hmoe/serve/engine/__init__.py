"""Text generation for many requests at a time: batches, slots, sampling, text; it knows nothing of HTTP or terminals."""

"""Text generation for many requests at a time: batches, slots, sampling, text; no HTTP and no terminal."""

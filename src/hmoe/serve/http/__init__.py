"""An HTTP server that answers as OpenAI's API does, over the engine."""

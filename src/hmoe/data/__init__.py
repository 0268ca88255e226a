"""Text -> tokenizer -> shards -> deterministic, resumable batches."""

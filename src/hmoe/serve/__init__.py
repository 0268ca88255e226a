"""An HTTP server over a given model and tokenizer: `engine` batches, `app` speaks HTTP, `server` keeps it in bounds."""

"""One page about runs, made from their files alone."""

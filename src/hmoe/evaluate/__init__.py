"""Measure how good a model is: perplexity of texts, and benchmarks of lm-evaluation-harness."""

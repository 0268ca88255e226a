"""Additions to other people's models: HyperExperts and duplicated feed-forward layers attached to them, and their fine-tuning."""

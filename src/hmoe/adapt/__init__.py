"""Additions to other people's models: HyperExperts, duplicated feed-forward layers, fine-tuning."""

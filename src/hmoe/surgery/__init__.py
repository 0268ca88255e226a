"""Trained models made into other ones: experts copied, cut, dropped or skipped."""

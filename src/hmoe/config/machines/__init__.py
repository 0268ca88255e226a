"""Machines whose numbers are known: a YAML file each."""

"""The command line. Empty, so that `hmoe.cli.interrupts` is imported before anything slow."""

"""The fault campaign: what may go wrong, planted by seed, and whether the promises hold (`make faults`)."""

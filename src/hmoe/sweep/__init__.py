"""Many trainings as one question: a plan of runs, a queue that survives kills, a table of rows, and its answer."""

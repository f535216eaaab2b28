"""The run folder: its files, checkpoints, metrics and the table of runs."""

"""The folder of a run: its files, results, thresholds and checkpoints."""

"""The page of a run: its figures, charts and pictures, in one file."""

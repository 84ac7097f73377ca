"""Studies that train: each a module to run, `python -m studies.NAME`."""

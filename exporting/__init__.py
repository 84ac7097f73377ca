"""The models of a run as files that need no PyTorch, and the folder that is used on a line."""

"""How a call runs: what a person sees of its progress, and the processes it is divided among."""

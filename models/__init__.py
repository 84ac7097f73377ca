"""The localiser, its class activation maps, and what every training loop needs."""

"""What trained models say about images."""

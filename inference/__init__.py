"""What trained models say about images."""

from inference.predictor import Options, Predictor, Result, load_run

__all__ = ["Options", "Predictor", "Result", "load_run"]

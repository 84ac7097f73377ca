"""What trained models say about images."""

from inference.predictor import Predictor, load_run
from inference.results import Options, Result

__all__ = ["Options", "Predictor", "Result", "load_run"]

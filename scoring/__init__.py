"""Scores of maps and masks against pixel masks, and thresholds without them."""

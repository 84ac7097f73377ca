"""The second stage: a segmentation network trained on pseudo labels."""

"""Saliency maps made from images and image labels alone, without pixel masks."""

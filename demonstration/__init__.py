"""The local page of demo.py: an image in, verdict, CAMs and mask out, corrections saved."""

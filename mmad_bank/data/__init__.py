"""Data: images to try things on, and readers of data sets."""

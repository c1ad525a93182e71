"""Labelled images for trainings: any source, decoded once to one size, read from disk as it is needed."""

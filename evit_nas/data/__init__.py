"""Labelled images for trainings: any source, decoded once to one size, read from disk as it is needed."""

from evit_nas.data.cache import load_dataset
from evit_nas.data.dataset import Dataset, Split
from evit_nas.data.sources import open_source

__all__ = ["Dataset", "Split", "load_dataset", "open_source"]

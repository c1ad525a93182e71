"""Shipping: from a finished training to a folder that deploys, and its re-examination."""

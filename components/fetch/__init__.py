"""Bring a version of a dataset from the DVC remote, verified."""

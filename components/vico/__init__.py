"""Teach the model to answer from compressed tiles."""

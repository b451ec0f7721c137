"""Endless video: the bounded cache, contiguous positions, the session."""

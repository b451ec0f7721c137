"""Teach the model to answer from compressed tiles. Described by profiles, not built yet."""

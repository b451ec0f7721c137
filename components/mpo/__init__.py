"""Train on preference pairs, offline. Described by profiles, not built yet."""

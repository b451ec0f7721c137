"""Sample answers and pair right with wrong ones. Described by profiles, not built yet."""

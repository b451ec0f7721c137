"""Sample answers and pair right with wrong ones."""

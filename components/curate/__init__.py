"""Check, deduplicate and decontaminate rows; split them by stage."""

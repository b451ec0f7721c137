"""Fine-tune for endless video. Described by profiles, not built yet."""

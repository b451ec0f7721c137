"""Store the language model's weights in fewer bits. Described by profiles, not built yet."""

"""Train on the model's own scored answers, online. Described by profiles, not built yet."""

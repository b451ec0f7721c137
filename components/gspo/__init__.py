"""Train on the model's own scored answers, online."""

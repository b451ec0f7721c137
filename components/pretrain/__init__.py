"""Native pre-training: all parameters, next-token loss."""

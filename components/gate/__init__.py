"""Compare the challenger with the champion and give a verdict."""

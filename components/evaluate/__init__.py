"""Answer every held-out row, keep the raw answers, score them."""

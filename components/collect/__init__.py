"""Build or import the raw dataset, its held-out rows and the tokenizer."""

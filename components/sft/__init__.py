"""Supervised fine-tuning: response tokens only."""

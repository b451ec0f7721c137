"""The critic of parallel thinking: a process reward model after VisualPRM (arXiv 2503.10291), which judges a solution
step by step and is trained by supervised fine-tuning like any other model. Imports no other room."""

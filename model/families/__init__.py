"""One small adapter per base family, behind one interface.

``interface.py`` says what a family gives; ``opening.py`` finds the family of a model directory; ``generation.py``
answers with any of them. ``qwen_*.py`` is what the Qwen-VLs share. Imports model.data, model.flash and
model.objectives.
"""

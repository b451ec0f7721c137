"""One small adapter per base family, behind one interface.

``interface.py`` says what a family gives; ``opening.py`` finds the family of a model directory. Imports model.data and
model.flash.
"""

"""Decoupled serving: vision predictor, language predictor, gateway. Imports model, scoring and planning only."""

"""Comparing models: how much of a gain survives, what else differs, and which evaluations belong together."""

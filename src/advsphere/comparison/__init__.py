"""Compare models: measure how much of a gain survives, list confounders, and find comparable evaluations."""

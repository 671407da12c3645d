"""Training runs: their config, parts, training, folder, and what of them is evaluated."""

"""Training runs: config, parts, training, folder, and the target of an evaluation."""

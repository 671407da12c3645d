"""advsphere: adversarial training on the hypersphere, and an honest measure of what it buys."""

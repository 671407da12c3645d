"""Training runs: config, parts, training, folder, and the target of an evaluation."""

from advsphere.errors import needs

needs("train", "tyro", "yaml", "cattrs")

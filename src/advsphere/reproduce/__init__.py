"""Reproduce the paper's tables: plan and run their jobs, store results, and write pages beside the paper's numbers."""

from advsphere.errors import needs

needs("report", "matplotlib", "jinja2")

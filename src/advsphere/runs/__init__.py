"""Runs: what one is (config), how it is built, trained, kept in a folder and found again."""

"""Plans on a real machine."""

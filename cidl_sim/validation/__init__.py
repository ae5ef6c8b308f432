"""Simulated against measured, by us and, as published, by others."""

"""Broken inputs by the thousand: every file that the package reads, and what its options are given."""

"""Blocks of any model: what they are, where a model is cut, what they weigh and cost."""

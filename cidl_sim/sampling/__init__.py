"""Samplers and leaps as plain functions that name no network."""

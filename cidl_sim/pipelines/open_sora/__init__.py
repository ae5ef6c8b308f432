"""Open-Sora: text to video."""

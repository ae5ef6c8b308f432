"""Device profiles and their catalog."""

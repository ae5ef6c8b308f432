"""From short real runs to a device profile."""

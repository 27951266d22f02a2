"""Cost tables that others published, read from their files and bound to a network."""

"""A run being made: build its components, check them, train, save."""

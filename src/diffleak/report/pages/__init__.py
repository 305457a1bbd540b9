"""The pages: each is the list of its sections."""

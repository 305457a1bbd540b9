"""What is written to disk, and how it is read back. No torch."""

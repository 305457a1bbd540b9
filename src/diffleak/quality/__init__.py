"""How good a model's images are, and how many are copies: features (torch), then statistics of them (numpy)."""

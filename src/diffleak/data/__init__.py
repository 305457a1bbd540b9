"""Images on disk → (id, pixels), member or held-out, calibrate or test. No torch, no model."""

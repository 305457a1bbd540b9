"""`diffleak lora`: which checkpoints of an adapter may be published. It composes `sweep`, `extraction` and `headers`."""

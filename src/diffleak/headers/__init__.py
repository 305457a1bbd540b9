"""`diffleak metadata`: the header of a .safetensors file, what it gives away, and a copy without that. No torch."""

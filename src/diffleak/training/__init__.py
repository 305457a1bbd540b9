"""Training loops on accelerate that save diffusers folders."""

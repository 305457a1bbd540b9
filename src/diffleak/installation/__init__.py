"""What is installed, on which machine, and if it computes correctly: `diffleak doctor`."""

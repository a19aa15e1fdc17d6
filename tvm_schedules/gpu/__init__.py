"""Mixed-precision expert kernels for NVIDIA GPUs, what they cost, and a meter that reads it off the card."""

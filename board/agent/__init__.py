"""What runs on the board: standard library, numpy and pynq, Python 3.10 or later, nothing to install."""

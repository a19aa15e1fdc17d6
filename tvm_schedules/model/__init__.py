"""A whole model on a board: its weights file, and the C runtime that decodes from it."""

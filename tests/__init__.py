"""Laws that hold between the folders."""

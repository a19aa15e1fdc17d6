"""Commands of more than a stage, one a module: each has a click command `command`, named after its module."""

"""Boards: targets, SSH, deployment, the agent, power sensors and the virtual board."""

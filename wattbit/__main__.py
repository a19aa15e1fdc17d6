"""`python -m wattbit`."""

from wattbit.cli import main

main(prog_name="wattbit")

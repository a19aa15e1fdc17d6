"""Bitstreams by Vivado for every board. No Vivado was at hand: untested with it and on hardware, and it says so."""

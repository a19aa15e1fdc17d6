"""What an allocation costs, by formulas with few constants, calibrated on measurements, and how sure they are."""

"""The networks of the three levels."""

"""The results file, and the tables and figures made of runs."""

"""The machine and what runs on it: processes, cores, memory, errors, provenance."""

"""The method, HiMeta (arXiv 2412.11930), without Lightning and without simulators."""

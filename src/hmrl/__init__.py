"""HiMeta: three-level hierarchical meta-reinforcement learning (arXiv 2412.11930)."""

"""Meta-World and a small grid world behind one protocol: which families and goals, and who simulates them."""

from hmrl.envs.benchmarks import Backend, Benchmark, benchmark
from hmrl.envs.factory import make_envs

__all__ = ["Backend", "Benchmark", "benchmark", "make_envs"]

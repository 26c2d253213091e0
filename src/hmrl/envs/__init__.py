"""Meta-World behind one protocol: which families and goals, and who simulates them."""

from hmrl.envs.benchmarks import Benchmark, benchmark
from hmrl.envs.factory import Backend, make_envs

__all__ = ["Backend", "Benchmark", "benchmark", "make_envs"]

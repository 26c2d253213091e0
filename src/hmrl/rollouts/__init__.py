"""Experience: the only loop that steps environments, the replay, and streams of rollouts."""

"""Where a reward comes from. A reward is one small class that turns rollouts into numbers."""

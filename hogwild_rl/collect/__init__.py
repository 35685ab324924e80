"""Experience: rollouts, episodes, transitions, the replay buffer and exploration noise."""

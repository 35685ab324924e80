"""Networks, the distributions of actions they give, and the two together."""

"""Lock-free (Hogwild) training of any torch module by several processes.

``model``    every parameter of a module in one flat tensor in shared memory
``optim``    RMSprop, Adam and SGD whose statistics are shared too
``slots``    one row of counts and timings per worker, each with a single writer
``moments``  running mean and variance of vectors, one row per worker
``workers``  start, watch and stop the processes
``supervisor``  replaces those that fail or hang
``restarts``    the rules for that
``worker``   the inside of one
``server``   what they are forked from leaves nothing behind
``memory``   shared tensors

Nothing here knows of reinforcement learning, and nothing here takes a lock.

Source: Recht et al. 2011 (arXiv:1106.5730).
"""

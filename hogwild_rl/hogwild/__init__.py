"""Lock-free (Hogwild) training of any torch module by several processes, independent of RL.

``shared_model``     all parameters of a module in one flat tensor in shared memory
``optimizers``       RMSprop, Adam and SGD with shared statistics
``counters``         one row of counts and timings per worker, each with a single writer
``running_moments``  running mean and variance of vectors, one row per worker
``shared_memory``    tensors in shared memory
``processes``        start, watch and stop workers
``supervisor``       restart workers that crash or hang
``forkserver``       clean-up of the server that workers are forked from

No module takes a lock.

Source: Recht et al. 2011 (arXiv:1106.5730).
"""

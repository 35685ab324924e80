"""Every source of environments behind one contract: vectorised, NEXT_STEP autoreset."""

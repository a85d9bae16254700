"""Config in, record out: the machinery that carries out one run or a sweep of runs."""

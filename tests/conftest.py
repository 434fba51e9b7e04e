"""Settings of the whole suite, made before torch is imported."""

import os


# The models here are tiny: one thread a process is faster than several, and `pytest -n` uses the other cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

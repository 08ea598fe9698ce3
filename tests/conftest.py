"""Test workers share the cores: one thread each (two torch processes of two threads thrash on two cores)."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

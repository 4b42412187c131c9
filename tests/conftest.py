"""What holds for every test: offline, seeded, and the same examples each time."""

import os

# Read once, when huggingface_hub is first imported: so before any test imports a host.
os.environ["HF_HUB_OFFLINE"] = "1"
# Processes beside each other, with as many threads each as there are cores, wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import random

import numpy as np
import pytest
from hypothesis import settings

# No deadline: a busy machine is not a wrong answer. Derandomised: a red run can be repeated.
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci")


@pytest.fixture(autouse=True)
def seeded():
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)

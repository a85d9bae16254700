"""Settings for the tests on a GPU: products that repeat to the bit need this before the first of them."""

import os

import torch

if torch.cuda.is_available():
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

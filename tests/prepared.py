"""What the processes of all tests have in common, those that are forked included; done when this is imported."""

import os
from functools import cache

import open_clip
import torch

torch.set_num_threads(1)  # the models are too small to share
open_clip.SimpleTokenizer = cache(open_clip.SimpleTokenizer)  # slower to read than most models to run
open_clip.factory.SimpleTokenizer = open_clip.SimpleTokenizer
os.fsync = lambda descriptor: None  # no test cuts the power, and each would wait for its disk

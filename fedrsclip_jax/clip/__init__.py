"""The frozen backbone: CLIP's two towers in Flax, its tokenizer, its preprocessing and its files."""

import os

# Without PyTorch transformers warns that it has no models; here it is asked for tokenizers and settings alone.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

"""The frozen backbone: CLIP's two towers in Flax, its tokenizer, its preprocessing and its files."""

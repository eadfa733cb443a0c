"""What leaves for PyTorch: prompts and classifiers of a finished run, with a certificate.

Nothing is imported here, so that `torch_classifier` can be used where there is no JAX.
"""

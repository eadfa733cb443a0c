"""Results for a reader: one self-contained page a run."""

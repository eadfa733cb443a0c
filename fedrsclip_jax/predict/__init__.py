"""Classes for a person's own images and scenes, by a finished run."""

"""Images to clients: sources, the split, the partition, and the features that stand in for the images."""

"""Models on disk: save, load and find checkpoints, adapters, and formats of other projects."""

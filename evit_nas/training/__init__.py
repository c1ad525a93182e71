"""Training of selected architectures: recipe, batches, loop, checkpoints, and what a finished training leaves."""

"""Functions of tensors: attention and its layouts, the loss, fused operations, 4-bit weights."""

"""HPCM networks in NumPy: the entropy path exact, the transforms in float32; nothing needs torch.

Tensors are (H, W, C) arrays in float32, of one image. What is computed is defined by
`hpcm_scale/models` and, for the entropy path, `entropy/EXACT.md`; the walk over the coding steps
and the weights as integers are those modules' own.
"""

"""Stage 6 of 7: what a model loads. A table and a module's weights in, a bundle folder out.

`bundle` is our own format, `tensors` the safetensors files inside it, `dense` the weights beside
the rows. Plain Python and NumPy: the runtime reads bundles too.
"""

"""The text that goes with a bundle: what it is, where it fits, how to load it."""

from __future__ import annotations

from engram_cli.formats.bundle_files import CARD as CARD
from engram_cli.formats.bundle_spec import BundleSpec


def model_card(spec: BundleSpec) -> str:
    """Markdown with the metadata that model hubs read; equal specs give equal text."""
    layout = spec.layout
    layers = ", ".join(spec.label(layer) for layer in spec.layers)
    rows = " + ".join(f"{spec.rows(layer):,}" for layer in spec.layers)
    orders = ", ".join(map(str, layout.orders))
    return f"""---
library_name: engram-tables
tags: [engram, conditional-memory, {spec.model_type}]
---

# Engram memory for a {spec.model_type} model

A hashed n-gram memory that is added to the hidden states before these decoder layers,
counted from 0: {layers}.
It holds no backbone: load the model it was made for, then attach it. A bundle that
was never trained changes no output.

```python
from engram_cli.runtime import attach

attach(model, "engram")
```

| | |
| --- | --- |
| model | {spec.model_type}, {spec.num_layers} layers of width {spec.hidden_size:,} |
| scheme | {layout.scheme}: orders {orders}, {layout.heads} heads, {layout.vocab_size:,} token ids |
| module | {spec.module.kind}, streams: {spec.module.streams} |
| rows | {rows}, {spec.dim} x {spec.dtype} each: {spec.table_bytes:,} bytes |
| a token reads | {layout.columns * len(spec.layers)} rows |
| packed documents | {"kept apart" if spec.packed else "one sequence"} |
| fingerprint | `{layout.fingerprint}` |

It fits only the tokenizer it was made for: another one gives other token ids, which are other rows.
"""

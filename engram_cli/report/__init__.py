"""Above the statistics: figures of a corpus in, one HTML page that opens offline out.

`page` writes it; each file of `sections` turns a part of the figures into text, drawings and
tables. `markup` escapes, `scales` and `charts` draw SVG, `assets` hold the style and the script.
"""

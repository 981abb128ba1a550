"""The style of every figure."""

STYLE = {
    "font.size": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    # The same study gives the same bytes.
    "svg.hashsalt": "hpcm-scale",
}
"""matplotlib settings."""

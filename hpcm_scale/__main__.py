"""`python -m hpcm_scale` is the program `hpcm-scale`."""

from hpcm_scale.cli import main

main()

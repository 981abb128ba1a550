from hpcm_scale.cli import main

main()

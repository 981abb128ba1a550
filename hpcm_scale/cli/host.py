"""Entry of launch/no_ssh.sh on every host: `python -m hpcm_scale.cli.host SCRIPT ARGUMENTS...`."""

import sys

from hpcm_scale.errors import HpcmError, one_line
from hpcm_scale.training.launcher import launch_host


def main() -> None:
    """Entry point: the exit code is the ranks' own, or 2 if the environment describes no job."""
    try:
        sys.exit(launch_host(sys.argv[1:]))
    except HpcmError as error:
        sys.stderr.write(f"train: {one_line(error)}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()

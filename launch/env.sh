# What the ranks of a job on many hosts need in their environment, in one place: the other recipes here source it,
# with MASTER_ADDR set and from the top folder. For one launch, set a variable before it: INTERFACE=ib0 bash launch/multinode.sh ...

# The packages of launch/setup_env.sh: at the same path on every host.
export PATH="$PWD/.venv/bin:$PATH"

# Said outright, so that DeepSpeed does not have to guess.
export DS_ACCELERATOR=${DS_ACCELERATOR:-$(python -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')}

# Where the ranks meet.
export MASTER_ADDR MASTER_PORT=${MASTER_PORT:-29500}

# The network between the hosts. Without its name gloo takes the address of the host's own name, which is often the
# loopback. Here: the interface that has the first host's address or, on any other host, the one that leads there.
# Set INTERFACE where the hosts call it otherwise than the machine you launch from does.
if [ -z "${INTERFACE:-}" ]; then
    address=$(getent ahostsv4 "$MASTER_ADDR" | awk 'NR == 1 { print $1 }') || {
        echo "env.sh: no address is known here for the first host, $MASTER_ADDR" >&2
        exit 1
    }
    INTERFACE=$(ip -o -4 address show to "$address" | awk '{ print $2; exit }')
    INTERFACE=${INTERFACE:-$(ip -o route get "$address" | sed 's/.* dev \([^ ]*\).*/\1/')}
fi
export GLOO_SOCKET_IFNAME=$INTERFACE NCCL_SOCKET_IFNAME=$INTERFACE

# What is handed to the ranks where ssh does not carry the environment over. Yours too: add its name.
PASSED_ON="PATH DS_ACCELERATOR GLOO_SOCKET_IFNAME NCCL_SOCKET_IFNAME NCCL_DEBUG NCCL_IB_HCA OMP_NUM_THREADS"

# Never a password prompt, and a host that falls silent is given up after half a minute, not the hours TCP takes.
# Your own: SSH_OPTIONS="-p 2222 -i key".
ssh_options="-o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=10 -o ServerAliveCountMax=3 ${SSH_OPTIONS:-}"

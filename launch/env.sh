# What the ranks of a job on many hosts need in their environment, in one place: the other recipes here source it,
# with MASTER_ADDR set and from the top folder. For one launch, set a variable before it: INTERFACE=ib0 bash launch/multinode.sh ...

# The packages of launch/setup_env.sh: at the same path on every host.
export PATH="$PWD/.venv/bin:$PATH"

# Said outright, so that DeepSpeed does not have to guess.
export DS_ACCELERATOR=${DS_ACCELERATOR:-$(python -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')}

# Where the ranks meet.
export MASTER_ADDR MASTER_PORT=${MASTER_PORT:-29500}

# The network between the hosts. Each rank finds its own: the interface that leads to the other hosts
# (hpcm_scale/training/rendezvous.py). INTERFACE names one for all of them instead.
if [ -n "${INTERFACE:-}" ]; then
    export GLOO_SOCKET_IFNAME=$INTERFACE NCCL_SOCKET_IFNAME=$INTERFACE
fi

# What is handed to the ranks where ssh does not carry the environment over. Yours too: add its name.
PASSED_ON="PATH DS_ACCELERATOR GLOO_SOCKET_IFNAME NCCL_SOCKET_IFNAME NCCL_DEBUG NCCL_IB_HCA OMP_NUM_THREADS"

# Never a password prompt, and a host that falls silent is given up after half a minute, not the hours TCP takes.
# Your own: SSH_OPTIONS="-p 2222 -i key".
ssh_options="-o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=10 -o ServerAliveCountMax=3 ${SSH_OPTIONS:-}"

#!/bin/bash
# A cluster by `ray up` on two machines that only ssh reaches, and its end: own_machines.sh FOLDER YAML HEAD WORKER
#
# Runs as root in network, process and mount namespaces of its own. In FOLDER lie key, hostkey and sshd.conf, and a folder
# for each machine, which becomes its /home. The account there is root by another name, so that it may read the libraries.
set -eu
folder=$1 yaml=$2 head=$3 worker=$4

ip link set lo up
mount -t tmpfs none /run
mkdir /run/sshd
ip link add wires type bridge
ip addr add "${head%.*}.1/24" dev wires
ip link set wires up
for machine in head worker; do
    ip netns add $machine
    ip link add $machine type veth peer name eth0 netns $machine
    ip link set $machine master wires up
    ip -n $machine link set lo up
    ip -n $machine addr add "${!machine}/24" dev eth0
    ip -n $machine link set eth0 up
    ip -n $machine route add default via "${head%.*}.1"  # without one Ray does not find a machine's own address
    ip netns exec $machine unshare --mount --pid --fork --mount-proc --kill-child sh -ec "
        mount --bind '$folder/$machine' /home
        mount --bind /home/passwd /etc/passwd
        mount --bind /home/shadow /etc/shadow
        exec /usr/sbin/sshd -D -e -f /home/sshd.conf
    " 2> "$folder/$machine.log" &
done

on_head() { ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -i "$folder/key" "rayscan@$head" "$@"; }
ask='RAY_TMPDIR=/home/rayscan/t RAY_AUTH_MODE=token venv/bin/ray status'
nodes() { on_head "$ask" 2> /dev/null | grep -c "^ $1 local.cluster.node" || true; }
of_ray() { pgrep -c -f 'gcs/gcs_server|raylet/raylet' || true; }
wait_until() {  # COMMAND VALUE WHAT
    end=$((SECONDS + 180))
    while [ $SECONDS -lt $end ]; do
        [ "$($1)" = "$2" ] && return
        read -r -t 2 < "$folder/never" || true  # a pause
    done
    echo "$3: not within three minutes" >&2
    on_head "$ask" >&2 || true
    tail -n 20 "$folder"/*.log >&2
    exit 1
}

mkfifo "$folder/never"
exec 9<> "$folder/never"
ray up --yes --no-config-cache "$yaml"
wait_until "nodes 2" 1 "two nodes"
echo "two nodes"
[ "$(cat "$folder/worker/rayscan/.rayscan.env")" = AWS_REGION=us-east-1 ] || { echo "the worker has the secret" >&2; exit 1; }
pkill -9 -f -- 'raylet/raylet.*--node_ip_address='"$worker"
wait_until "nodes 1" 1 "the loss of the worker"
wait_until "nodes 2" 1 "a worker in place of the lost one"
echo "two nodes again"
ray down --yes "$yaml"
[ "$(pgrep -c -f gcs/gcs_server || true)" = 0 ] || { echo "the head's Ray runs on after ray down" >&2; exit 1; }
wait_until of_ray 0 "an end of the worker's Ray"
echo "no Ray"

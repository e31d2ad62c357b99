#!/usr/bin/env bash
# cluster.sh build|up|down [DIR] -- a real private Kubernetes on this machine: its control plane and one node, with fake accelerators.
#
# For the suite tests/kubernetes, which runs where KUBECONFIG is set. Needs root on Debian 12 (amd64).
#   build  installs Debian's packages and builds Kubernetes 1.20 from Debian's source, once, into ~/.cache/berth/kubernetes (about 20 minutes, 6 GB
#          while it builds, 0.5 GB afterwards).
#   up     starts everything on loopback with free ports, all state in DIR (default ~/.cache/berth/kubernetes/cluster). Prints the lines to eval.
#          Pods are on a bridge of this machine only, so there is no way out of it. GPUS=4 sets the number of fake GPUs.
#   down   ends each process that `up` started, by its id, with its pods, mounts and bridge.
# No kube-proxy and no DNS: pods are reached by their address, as Berth does.
set -euo pipefail
cache=${BERTH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/berth}/kubernetes
bin=$cache/bin
command=${1:-}
mkdir -p "$cache"
dir=$(realpath -m "${2:-$cache/cluster}")
bridge=berthk8s
subnet=10.244.77
# The name under which the node is reached: the API server asks the kubelet there, and it listens on loopback only.
node=localhost
version=1.20.5+really1.20.2-1.1+deb12u1

install_packages() {
    local wanted=(etcd-server containerd runc containernetworking-plugins iproute2 openssl curl "$@") missing=() package
    for package in "${wanted[@]}"; do
        dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
    # Debian starts them when they are installed, with state and sockets of their own, which nothing here uses.
    local service
    for service in etcd containerd; do
        [ ! -d /run/systemd/system ] || systemctl disable --now "$service"
    done
}

build() {
    [ ! -x "$bin/kubelet" ] || return 0
    install_packages golang-1.19-go golang-github-modern-go-reflect2-dev rsync dpkg-dev make gcc libc6-dev
    local work=$cache/build
    rm -rf "$work"
    mkdir -p "$work/home" "$work/lists/partial" "$bin"
    # A package list of its own: the machine's sources stay as they are. The machine's mirror is where its packages come from.
    local mirror
    # shellcheck disable=SC2016  # apt's own variable.
    mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -v security | grep debian | head -1)
    echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm main" >"$work/sources.list"
    local options=(-o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=/nonexistent -o "Dir::State::Lists=$work/lists")
    cd "$work"
    apt-get "${options[@]}" -q update
    apt-get "${options[@]}" -q source --download-only "kubernetes=$version"
    dpkg-source -x kubernetes_*.dsc src
    # The copy of reflect2 in it reads the map iterator of Go before 1.18 and crashes under 1.19; Debian's own package of it does not.
    rm src/vendor/github.com/modern-go/reflect2/*.{go,s}
    cp /usr/share/gocode/src/github.com/modern-go/reflect2/* src/vendor/github.com/modern-go/reflect2/
    mkdir -p src/.go/src/k8s.io
    ln -sfn ../../.. src/.go/src/k8s.io/kubernetes
    (
        cd src
        unset GOFLAGS
        export PATH=/usr/lib/go-1.19/bin:$PATH GOPATH=$PWD/.go GOCACHE=$work/gocache HOME=$work/home
        export KUBE_GIT_VERSION=v1.20.2 KUBE_GIT_TREE_STATE=archive KUBE_GIT_COMMIT=debian KUBE_GIT_MAJOR=1 KUBE_GIT_MINOR=20
        CGO_ENABLED=0 make WHAT="cmd/kube-apiserver cmd/kube-controller-manager cmd/kube-scheduler"
        CGO_ENABLED=1 KUBE_CGO_OVERRIDES=kubelet make WHAT="cmd/kubelet"
    )
    # What holds a pod's namespaces open: it sleeps, and collects the children that it is given.
    mkdir -p pause
    cat >pause/main.go <<'GO'
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ends := make(chan os.Signal, 16)
	signal.Notify(ends, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for received := range ends {
		if received != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}
GO
    (cd pause && GO111MODULE=off CGO_ENABLED=0 GOCACHE=$work/gocache HOME=$work/home /usr/lib/go-1.19/bin/go build -o "$bin/pause" main.go)
    strip src/_output/bin/kube{-apiserver,-controller-manager,-scheduler,let}
    cp src/_output/bin/kube{-apiserver,-controller-manager,-scheduler} "$bin/"
    cp src/_output/bin/kubelet "$bin/kubelet.part"
    mv "$bin/kubelet.part" "$bin/kubelet" # Last: it says that all are there.
    cd /
    rm -rf "$work"
}

# Start a program with its output in a log, its id in a file, in a session of its own.
start() {
    local name=$1
    shift
    setsid "$@" >"$dir/run/$name.log" 2>&1 </dev/null &
    echo $! >"$dir/run/$name.pid"
}

# Return when a command succeeds; fail when the program of that name has ended, or after a minute.
until_works() {
    local name=$1
    shift
    for _ in $(seq 300); do
        "$@" >/dev/null 2>&1 && return
        kill -0 "$(cat "$dir/run/$name.pid")" 2>/dev/null || break
        sleep 0.2
    done
    echo "$name does not work. End of $dir/run/$name.log:" >&2
    tail -20 "$dir/run/$name.log" >&2
    return 1
}

free_ports() {
    python3 -c 'import socket,sys
taken=[socket.socket() for _ in range(int(sys.argv[1]))]
for each in taken: each.bind(("127.0.0.1",0))
print(*(each.getsockname()[1] for each in taken))' "$1"
}

# The image that holds a pod's namespaces, as an archive that containerd takes: a registry is not needed for it.
pause_archive() {
    python3 - "$bin/pause" "$1" <<'PY'
import hashlib, io, json, sys, tarfile

def archive(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data, mode in files:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()

layer = archive([("pause", open(sys.argv[1], "rb").read(), 0o755)])
digest = hashlib.sha256(layer).hexdigest()
config = {"architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/pause"]},
          "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]}}
config = json.dumps(config).encode()
name = hashlib.sha256(config).hexdigest() + ".json"
manifest = [{"Config": name, "RepoTags": ["localhost/pause:3.2"], "Layers": [f"{digest}.tar"]}]
open(sys.argv[2], "wb").write(
    archive([(name, config, 0o644), (f"{digest}.tar", layer, 0o644), ("manifest.json", json.dumps(manifest).encode(), 0o644)]))
PY
}

containerd_config() {
    cat <<TOML
version = 2
root = "$dir/containerd"
state = "$dir/run/containerd"
[grpc]
  address = "$dir/run/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:3.2"
  # Without CAP_SYS_RESOURCE, as in a container, nobody may lower these values.
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$dir/run/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
TOML
}

kubelet_config() {
    cat <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 127.0.0.1
port: $1
healthzBindAddress: 127.0.0.1
healthzPort: $2
# Only this machine reaches it.
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failSwapOn: false
oomScoreAdj: 0
makeIPTablesUtilChains: false
evictionHard: {}
# A disk that is nearly full otherwise has images removed under the tests, and containers wait for minutes meanwhile.
imageGCHighThresholdPercent: 100
maxOpenFiles: 20000
resolvConf: /etc/resolv.conf
volumePluginDir: $dir/run/volume-plugins
YAML
}

up() {
    [ -x "$bin/kubelet" ] || { echo "First: $0 build" >&2; exit 1; }
    [ ! -e "$dir/run" ] || { echo "$dir is up, or was not taken down: $0 down $dir" >&2; exit 1; }
    install_packages
    mkdir -p "$dir/run/certs" "$dir/run/cni"
    local etcd peer api controllers scheduler kubelet health token
    read -r etcd peer api controllers scheduler kubelet health < <(free_ports 7)
    start etcd etcd --data-dir "$dir/run/etcd" --listen-client-urls "http://127.0.0.1:$etcd" --advertise-client-urls "http://127.0.0.1:$etcd" \
        --listen-peer-urls "http://127.0.0.1:$peer" --initial-advertise-peer-urls "http://127.0.0.1:$peer" \
        --initial-cluster "default=http://127.0.0.1:$peer" --unsafe-no-fsync
    openssl genrsa -out "$dir/run/sa.key" 2048 2>/dev/null
    openssl rsa -in "$dir/run/sa.key" -pubout -out "$dir/run/sa.pub" 2>/dev/null
    token=$(openssl rand -hex 16)
    (umask 077 && echo "$token,admin,admin,\"system:masters\"" >"$dir/run/tokens.csv")
    start apiserver "$bin/kube-apiserver" "--etcd-servers=http://127.0.0.1:$etcd" --bind-address=127.0.0.1 "--secure-port=$api" --insecure-port=0 \
        "--cert-dir=$dir/run/certs" --service-account-issuer=https://kubernetes.default.svc "--service-account-key-file=$dir/run/sa.pub" \
        "--service-account-signing-key-file=$dir/run/sa.key" "--token-auth-file=$dir/run/tokens.csv" --authorization-mode=RBAC \
        --service-cluster-ip-range=10.96.77.0/24 --advertise-address=127.0.0.1
    (
        umask 077
        cat >"$dir/kubeconfig" <<YAML
apiVersion: v1
kind: Config
clusters: [{name: berth, cluster: {server: "https://127.0.0.1:$api", certificate-authority: $dir/run/certs/apiserver.crt}}]
users: [{name: admin, user: {token: $token}}]
contexts: [{name: berth, context: {cluster: berth, user: admin}}]
current-context: berth
YAML
    )
    export KUBECONFIG=$dir/kubeconfig
    until_works apiserver kubectl get --raw=/readyz
    start controllers "$bin/kube-controller-manager" "--kubeconfig=$KUBECONFIG" --bind-address=127.0.0.1 "--secure-port=$controllers" --port=0 \
        "--cert-dir=$dir/run/certs-controllers" "--service-account-private-key-file=$dir/run/sa.key" --leader-elect=false \
        '--controllers=*,-nodeipam,-cloud-node-lifecycle,-service,-route'
    start scheduler "$bin/kube-scheduler" "--kubeconfig=$KUBECONFIG" --bind-address=127.0.0.1 "--secure-port=$scheduler" --port=0 \
        "--cert-dir=$dir/run/certs-scheduler" --leader-elect=false
    ip link show "$bridge" >/dev/null 2>&1 || ip link add "$bridge" type bridge
    ip address replace "$subnet.1/24" dev "$bridge"
    ip link set "$bridge" up
    cat >"$dir/run/cni/10-bridge.conflist" <<JSON
{"cniVersion": "0.4.0", "name": "berth", "plugins": [{"type": "bridge", "bridge": "$bridge", "isGateway": true, "ipMasq": false,
 "ipam": {"type": "host-local", "ranges": [[{"subnet": "$subnet.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "$dir/run/addresses"}}]}
JSON
    containerd_config >"$dir/run/containerd.toml"
    start containerd containerd --config "$dir/run/containerd.toml"
    until_works containerd ctr --address "$dir/run/containerd.sock" version
    pause_archive "$dir/run/pause.tar"
    ctr --address "$dir/run/containerd.sock" --namespace k8s.io images import "$dir/run/pause.tar" >/dev/null
    kubelet_config "$kubelet" "$health" >"$dir/run/kubelet.yaml"
    start kubelet "$bin/kubelet" "--config=$dir/run/kubelet.yaml" "--kubeconfig=$KUBECONFIG" "--root-dir=$dir/kubelet" --container-runtime=remote \
        "--container-runtime-endpoint=unix://$dir/run/containerd.sock" "--hostname-override=$node" "--cert-dir=$dir/run/certs-kubelet"
    # shellcheck disable=SC2016  # For the inner shell.
    until_works kubelet sh -c 'kubectl get node "$1" | grep -qw Ready' - "$node"
    # Fake accelerators: a pod that asks for them has a place, and one that asks for too many waits for ever.
    local server=https://127.0.0.1:$api
    curl --silent --fail --output /dev/null --cacert "$dir/run/certs/apiserver.crt" --config <(echo "header = \"Authorization: Bearer $token\"") \
        --request PATCH --header 'Content-Type: application/json-patch+json' \
        --data "[{\"op\":\"add\",\"path\":\"/status/capacity/nvidia.com~1gpu\",\"value\":\"${GPUS:-4}\"}]" "$server/api/v1/nodes/$node/status"
    kubectl label node "$node" nvidia.com/gpu.product=NVIDIA-H100-NVL --overwrite >/dev/null
    echo "export KUBECONFIG=$KUBECONFIG"
}

down() {
    [ -d "$dir/run" ] || return 0
    local name pid
    # Pods end while their kubelet is there.
    KUBECONFIG=$dir/kubeconfig timeout 60 kubectl delete pods --all --all-namespaces --force --grace-period=0 >/dev/null 2>&1 || true
    for name in kubelet scheduler controllers; do end "$name"; done
    if [ -S "$dir/run/containerd.sock" ]; then
        local ctr=(ctr --address "$dir/run/containerd.sock" --namespace k8s.io)
        for pid in $(timeout 20 "${ctr[@]}" tasks list --quiet 2>/dev/null); do
            timeout 20 "${ctr[@]}" tasks kill --signal KILL "$pid" >/dev/null 2>&1 || true
        done
        sleep 1
    fi
    for name in containerd apiserver etcd; do end "$name"; done
    # Each pod has a shim, which outlives containerd; its socket's folder says that it is ours.
    for pid in /proc/[0-9]*; do
        if { tr '\0' ' ' <"$pid/cmdline"; } 2>/dev/null | grep -q "^/usr/bin/containerd-shim-runc-v2 .*$dir/run/containerd.sock"; then
            kill -9 "${pid#/proc/}" 2>/dev/null || true
        fi
    done
    mounts
    ip link delete "$bridge" 2>/dev/null || true
    rm -rf "$dir/run" "$dir/kubelet" "$dir/kubeconfig"
}

end() {
    local pid
    [ -f "$dir/run/$1.pid" ] || return 0
    pid=$(cat "$dir/run/$1.pid")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 100); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null || true
}

mounts() {
    local place
    awk -v folder="$dir/" 'index($2, folder) == 1 {print $2}' /proc/mounts | sort -r | while read -r place; do
        umount --lazy "$place" || true
    done
}

case $command in
    build) build ;;
    up) up ;;
    down) down ;;
    *)
        echo "usage: $0 build|up|down [DIR]" >&2
        exit 2
        ;;
esac

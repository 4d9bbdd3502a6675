#!/bin/sh
# Installs what `make` built into this machine and runs it as systemd services: they get ready, pods run, and a restart of
# the services is invisible to them. For a machine that is thrown away; `make vm` calls it.
set -eux

# await SECONDS COMMAND... calls the command until it succeeds.
await() {
	limit=$1
	shift
	until "$@"; do
		limit=$((limit - 1))
		if [ "$limit" = 0 ]; then
			journalctl -u orlop -u orlop-kubelet --no-pager | tail -n 40
			return 1
		fi
		sleep 1
	done
}
kept() { orlop status | grep -q 'nginx.*kept.*running'; }
gone() { ! orlop status | grep -q kept; }

install -m 0755 -t /usr/local/bin build/bin/orlop build/bin/orlop-conmon build/bin/orlop-kubelet
mkdir -p /opt/cni/bin /etc/cni/net.d /etc/orlop/manifests
install -m 0755 -t /opt/cni/bin build/cni/*
cp contrib/cni/10-orlop.conflist /etc/cni/net.d
cp contrib/config/orlop.toml contrib/config/kubelet.yaml /etc/orlop
cp contrib/systemd/orlop.service contrib/systemd/orlop-kubelet.service /run/systemd/system
systemctl daemon-reload

systemctl start orlop # returns when it is ready, Type=notify
orlop status
orlop image load build/demo-image localhost/orlop-demo/nginx:1
orlop pod run examples/pod.yaml examples/container.yaml
test "$(orlop exec nginx -- cat /proc/1/oom_score_adj)" = 0 # and not the service's own
before=$(orlop status -o json | grep '"id"')

main=$(systemctl show -P MainPID orlop)
systemctl restart orlop
test "$(systemctl show -P MainPID orlop)" != "$main"
test "$(orlop status -o json | grep '"id"')" = "$before"
test "$(orlop exec nginx -- cat /etc/hostname)" = web
curl -sSf http://127.0.0.1:8080/ | grep -q Orlop

kill -KILL "$(systemctl show -P MainPID orlop)"
until orlop status >/dev/null 2>&1; do sleep 0.2; done # Restart=always
orlop logs nginx | grep -q 'GET / HTTP'
orlop status | grep -q 'web.*ready'

orlop pod rm --all

# A pod of a manifest runs, outlives the kubelet, and goes with its manifest.
systemctl start orlop-kubelet
cat >/etc/orlop/manifests/web.yaml <<END
apiVersion: v1
kind: Pod
metadata: {name: kept}
spec:
  containers: [{name: nginx, image: "localhost/orlop-demo/nginx:1"}]
END
await 60 kept
before=$(orlop status -o json | grep '"id"')
systemctl restart orlop-kubelet
sleep 5
test "$(orlop status -o json | grep '"id"')" = "$before"
rm /etc/orlop/manifests/web.yaml
await 60 gone
systemctl stop orlop-kubelet

systemctl stop orlop
until ! pgrep orlop; do sleep 0.2; done # the monitor ends when it has nothing left
if systemctl list-units --type=slice --plain | grep orlop-pod; then exit 1; fi # nor is there a unit of a pod

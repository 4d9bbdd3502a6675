# make            builds into build/bin and build/cni
# sudo make run   runs a pod and shows it working
# sudo make test  runs every test that this machine can run
# make help       lists the rest

.DEFAULT_GOAL := build
SHELL := /bin/sh
# sudo takes away where Go is commonly unpacked.
export PATH := $(PATH):/usr/local/go/bin

BUILD := $(CURDIR)/build
BIN := $(BUILD)/bin
CNI := $(BUILD)/cni
# A kubelet shows only a runtime's version that is one of numbers.
VERSION ?= $(shell git describe --tags --dirty 2>/dev/null || echo 0.0.0-g$$(git rev-parse --short HEAD 2>/dev/null || echo dev))
PREFIX ?= /usr/local
STEP := contrib/step.sh

# Keep cgo to libseccomp alone: no gpgme, no libbtrfs.
TAGS := seccomp,containers_image_openpgp,exclude_graphdriver_btrfs
# orlop-conmon links less, and no libc: it is the init of pods too, where there is no loader.
CONMON_TAGS := seccomp,netgo,osusergo,runc_nocriu
export GOFLAGS := -buildvcs=false -tags=$(TAGS)

CNI_VERSION := v1.9.1
CNI_PLUGINS := main/bridge main/loopback main/ptp main/host-device ipam/host-local ipam/static \
	meta/portmap meta/bandwidth meta/firewall meta/tuning
# staticcheck finds what vet does not look for: code that nothing uses, APIs used wrongly, conditions that never hold.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
# Without SA1019, since deprecated fields of CRI and of seccomp profiles are still sent and must be read.
STATICCHECK_CHECKS := inherit,-SA1019
# govulncheck tells which known vulnerabilities of our dependencies our code reaches.
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0

# Images and packages that tests and the demo make or download.
export ORLOP_TEST_CACHE ?= $(BUILD)/cache
DEMO_IMAGE := $(BUILD)/demo-image
TEST_IMAGES := $(BUILD)/test-images
# What a test run uses instead of building it again.
TEST_ENV := ORLOP_BIN=$(BIN) ORLOP_CNI_BIN=$(CNI) ORLOP_CONMON=$(BIN)/orlop-conmon PATH="$(BUILD)/tools/usr/bin:$$PATH"
# The suites that drive a whole daemon and count what is on the machine run alone, after the others.
ALONE := ./test/e2e ./test/kubelet ./test/lone ./test/proxy
RACE ?= -race
TEST_TIMEOUT ?= 15m
FUZZTIME ?= 5s
BENCHTIME ?= 1s
BENCH ?=
VM_RUN ?= ../shared/vm/vm-run

.PHONY: build orlop orlop-kubelet orlop-proxy orlop-conmon cni cluster demo-image run test unit check vuln fuzz bench cover vm completions docs install clean help

build: orlop orlop-kubelet orlop-proxy orlop-conmon cni ## build orlop, orlop-kubelet, orlop-proxy, orlop-conmon and the standard CNI plugins
	@[ -z "$$SUDO_UID" ] || chown -R "$$SUDO_UID:$$SUDO_GID" $(BUILD)

orlop: prerequisites-build
	@mkdir -p $(BIN)
	@$(STEP) "building orlop (the first build takes some minutes)" \
		go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $(BIN)/orlop ./cmd/orlop

orlop-kubelet orlop-proxy: prerequisites-build
	@mkdir -p $(BIN)
	@$(STEP) "building $@" go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $(BIN)/$@ ./cmd/$@

orlop-conmon: prerequisites-build
	@mkdir -p $(BIN)
	@$(STEP) "building orlop-conmon" env GOFLAGS='-buildvcs=false -tags=$(CONMON_TAGS)' \
		go build -trimpath -ldflags '-s -w -linkmode external -extldflags -static' -o $(BIN)/orlop-conmon ./cmd/orlop-conmon

# They are built outside of this module, so that what they need is not among our dependencies.
cni: $(CNI)/.$(CNI_VERSION)
$(CNI)/.$(CNI_VERSION):
	@rm -rf $(CNI) && mkdir -p $(CNI)
	@$(STEP) "building the CNI plugins" env GOBIN=$(CNI) CGO_ENABLED=0 GOFLAGS=-buildvcs=false go install -trimpath -ldflags '-s -w' \
		$(foreach p,$(CNI_PLUGINS),github.com/containernetworking/plugins/plugins/$(p)@$(CNI_VERSION))
	@touch $@

# The demo's image is made of Debian's nginx; it changes with the code that makes it.
demo-image: $(DEMO_IMAGE)/oci-layout
$(DEMO_IMAGE)/oci-layout: $(wildcard test/images/*.go test/images/mkimage/*.go)
	@rm -rf $(DEMO_IMAGE)
	@$(STEP) "making the demo image from Debian's packages" go run ./test/images/mkimage -o $(DEMO_IMAGE) nginx
	@touch $@

# Tests that run in a network namespace of their own can't fetch packages.
.PHONY: test-images
test-images: prerequisites-build
	@$(STEP) "making the test images from Debian's packages" go run ./test/images/mkimage -o $(TEST_IMAGES) all

prerequisites-%:
	@contrib/prerequisites.sh $*

run: prerequisites-run build demo-image ## run a pod and show it working, until Ctrl-C (as root; ONCE=1 ends by itself)
	@ONCE=$(ONCE) contrib/run-demo.sh $(BUILD)

# The suites of whole clusters run a real control plane, which is built once and kept.
cluster: prerequisites-build
	@$(STEP) "building the Kubernetes control plane (the first time it takes some 15 minutes)" go run ./test/cluster/build

test: prerequisites-run prerequisites-test build test-images cluster ## run every test that this machine can run (as root)
	@echo "==> testing; each package shows when it ends"
	@all=$$(go list ./...) || exit 1; \
	{ $(TEST_ENV) REQUIRE_KERNEL=1 go test -json $(RACE) -shuffle=on -timeout $(TEST_TIMEOUT) $$(echo "$$all" | grep -vE '/test/(e2e|kubelet|lone|proxy)$$'); \
	  $(TEST_ENV) REQUIRE_KERNEL=1 go test -json -count=1 -p 1 -timeout $(TEST_TIMEOUT) $(ALONE); } | go run ./test/summary

unit: prerequisites-build ## run the tests that need no root
	@go test -json -race -shuffle=on -timeout $(TEST_TIMEOUT) ./... | go run ./test/summary

check: prerequisites-build prerequisites-check ## look at the code without running it, and at what is generated from it
	@echo "==> gofmt"; out=$$(gofmt -l cmd conmon image internal kubelet oci proxy server storage test); [ -z "$$out" ] || { echo "run gofmt -w on:"; echo "$$out"; exit 1; }
	@echo "==> go.mod"; go mod tidy -diff
	@$(STEP) "vet" go vet ./...
	@GOFLAGS='-buildvcs=false -tags=$(CONMON_TAGS)' go vet ./cmd/orlop-conmon ./conmon/... ./oci/...
	@$(STEP) "staticcheck" go run $(STATICCHECK) -checks "$(STATICCHECK_CHECKS)" ./...
	@echo "==> shellcheck"; shellcheck contrib/*.sh .ci/run
	@echo "==> imports, and generated files"; go test ./internal/arch ./cmd/orlop ./cmd/orlop-kubelet ./cmd/orlop-proxy

vuln: ## look for known vulnerabilities that the code reaches, if their database can be reached
	@if curl -sfo /dev/null --max-time 10 https://vuln.go.dev/index/db.json; then go run $(GOVULNCHECK) ./...; \
	 else echo "vuln: skipped: vuln.go.dev can't be reached"; fi

fuzz: ## run each fuzz target for FUZZTIME
	@set -e; grep -rlE --include='*_test.go' '^func Fuzz' cmd conmon image internal kubelet oci proxy server storage | while read -r file; do \
		for target in $$(sed -nE 's/^func (Fuzz[A-Za-z0-9_]*)\(.*/\1/p' "$$file"); do \
			echo "==> $$target in $${file%/*}"; go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "./$${file%/*}"; \
		done; done

bench: prerequisites-run prerequisites-test build test-images ## measure: functions for BENCHTIME (1x: once), then a daemon by CRI (BENCH="-endpoint ...": another)
	@$(TEST_ENV) go test -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) -timeout 60m $$(go list ./... | grep -v '/test/')
	@$(TEST_ENV) go run ./test/bench $(BENCH)

cover: prerequisites-run prerequisites-test build test-images cluster ## tell how much of the code the tests run (as root)
	@$(TEST_ENV) go test -coverpkg=./... -coverprofile=$(BUILD)/cover.out -timeout $(TEST_TIMEOUT) $$(go list ./... | grep -v '/test/') >/dev/null
	@go tool cover -func=$(BUILD)/cover.out | tail -n 1
	@go tool cover -html=$(BUILD)/cover.out -o $(BUILD)/cover.html && echo "by line: $(BUILD)/cover.html"

# In a virtual machine are cgroup v2, systemd, SELinux and user namespaces; it has no Go and no network. It is emulated,
# so that only what depends on the kernel runs there, which takes some 20 minutes.
VM_PACKAGES := oci/cgroup oci/ns oci/runtime oci/runtime/filter conmon/child conmon/worker conmon storage server/host server/label server/cni test/e2e
# Once more with our own cgroups instead of systemd's, and with SELinux in force.
VM_CGROUPFS := Test(Resources|UpdateResources|Devices|CgroupParent|Stats|OOMKilled|PodLifecycle|ExecTimeout|ExecsLeaveNothing|Reboot|StatusAndVersion)$$
VM_SELINUX := Test(SELinux|PodsAreKeptApart|Relabel|Container$$|ContainerLifecycle|Mount|RecursiveReadOnly|ImageVolume|Privileged|Devices|Seccomp|UserNamespace|SharedPID|TargetPID|SharedMemory|Sysctls|OOMKilled|ExecSync|ExecStream$$|ExecTerminal|StdinOnce|PortForward|PullTogether|Reboot)
# Mode ipvs of the proxy, and the change from each mode to each other one.
VM_IPVS := ^Test(Packets|Killed|InitOnly|UDPFollows|ServiceAtNode|HostPorts|HealthCheckPasses|Explain|ExplainDifferences)$$/ipvs|TestLeavesNoTrace|Test(Describe|Rules|RandomChanges|EachChange|HostileObjects|Schedulers|Tampered|Exclude|OwnAddresses|TakesOver|GracefulTermination)$$
vm: build test-images demo-image ## run the suites that depend on the kernel in a virtual machine
	@test -x $(VM_RUN) || { echo "vm: no $(VM_RUN); set VM_RUN to a program that runs a command in a machine"; exit 1; }
	@mkdir -p $(BUILD)/vm
	@for p in $(VM_PACKAGES) proxy/ipvs test/proxy; do go test -c -o $(BUILD)/vm/$$(echo $$p | tr / -).test ./$$p || exit 1; done
	@$(VM_RUN) --timeout 600 -- contrib/vm-systemd.sh
	@$(VM_RUN) --timeout 3000 -- contrib/vm-tests.sh $(VM_PACKAGES)
	@$(VM_RUN) --timeout 2400 -- contrib/vm-tests.sh -run '$(VM_IPVS)' proxy/ipvs test/proxy
	@$(VM_RUN) --timeout 1200 -- env ORLOP_TEST_CGROUP_DRIVER=cgroupfs contrib/vm-tests.sh -run '$(VM_CGROUPFS)' test/e2e
	@$(VM_RUN) --timeout 1800 --selinux enforcing -- contrib/vm-tests.sh -run '$(VM_SELINUX)' server/label test/e2e

completions docs: ## write completions/, docs/man and contrib/config anew from the commands
	@go test ./cmd/orlop ./cmd/orlop-kubelet ./cmd/orlop-proxy -run TestGeneratedFiles -count=1 -update

install: ## install below DESTDIR and PREFIX; a configuration or network that is there is kept
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/bin $(BIN)/orlop $(BIN)/orlop-kubelet $(BIN)/orlop-proxy $(BIN)/orlop-conmon
	install -D -m 0755 -t $(DESTDIR)/opt/cni/bin $(CNI)/*
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/man/man8 docs/man/*.8
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/man/man5 docs/man/*.5
	for p in orlop orlop-kubelet orlop-proxy; do \
		install -D -m 0644 completions/$$p.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/$$p; \
		install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/zsh/site-functions completions/_$$p; \
		install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d completions/$$p.fish; \
	done
	mkdir -p $(DESTDIR)/etc/systemd/system
	for u in orlop orlop-kubelet orlop-proxy; do sed 's|/usr/local/bin|$(PREFIX)/bin|' contrib/systemd/$$u.service >$(DESTDIR)/etc/systemd/system/$$u.service; done
	ls $(DESTDIR)/etc/cni/net.d/*.conf* >/dev/null 2>&1 || install -D -m 0644 -t $(DESTDIR)/etc/cni/net.d contrib/cni/10-orlop.conflist
	mkdir -p $(DESTDIR)/etc/orlop/manifests $(DESTDIR)/etc/orlop/services
	for c in orlop.toml kubelet.yaml proxy.yaml; do test -e $(DESTDIR)/etc/orlop/$$c || install -D -m 0644 contrib/config/$$c $(DESTDIR)/etc/orlop/$$c; done

clean: ## remove what was built
	rm -rf $(BUILD)

help: ## list the targets
	@sed -nE 's/^([a-z][a-z ]*):.*## (.*)/  \1: \2/p' Makefile

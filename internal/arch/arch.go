// Package arch holds the layout of the repository as a table: what each tree is for and what it may import. Its test
// reads every import of every Go file and fails on an arrow that is not here.
package arch

import "strings"

// Module is the path of this module.
const Module = "github.com/orlop/orlop"

// Rule says what the packages in one tree may import of the others. Its own tree is always allowed.
type Rule struct {
	Tree string // directory from the module's root; the longest match counts
	May  []string
}

// Anything stands for every tree but test.
const Anything = "*"

// Rules are the arrows. Only test files and kits may import kits.
var Rules = []Rule{
	{"cmd", []string{Anything}},
	// The monitor is kept small: what it may link is in Unlinked, too.
	{"cmd/orlop-conmon", []string{"conmon", "oci", "internal"}},
	{"server", []string{"oci/spec", "oci/ns", "oci/cgroup", "image", "storage", "conmon", "internal"}},
	{"oci", []string{"internal"}},
	{"image", []string{"storage", "internal"}},
	{"storage", []string{"internal"}},
	{"conmon", []string{"oci", "internal"}},
	// It reaches the runtime through the CRI socket only, and would work over another one.
	{"kubelet", []string{"internal"}},
	{"cmd/orlop-kubelet", []string{"kubelet", "internal"}},
	// It works beside any runtime and any kubelet.
	{"proxy", []string{"internal"}},
	{"cmd/orlop-proxy", []string{"proxy", "internal"}},
	{"internal", nil},
	{"test", []string{Anything}},
}

// Home is an import from outside the module that is kept to some trees, so that what it brings stops there.
type Home struct {
	Import string   // a path or the beginning of one
	Trees  []string // where it may be imported, tests included
	Tests  []string // where tests alone may import it
	Why    string
}

// Homes are the imports that are kept.
var Homes = []Home{
	{"github.com/containers/", []string{"image", "storage"}, nil,
		"a later move to the library's successor is then a change in two places"},
	{"github.com/opencontainers/runc", []string{"oci/runtime", "conmon/worker", "cmd/orlop-conmon"}, []string{"oci/spec"},
		"libcontainer types stop at the runtime and the worker"},
	{"google.golang.org/grpc", []string{"server", "kubelet", "cmd/orlop", "cmd/orlop-kubelet", "test"}, nil,
		"gRPC is the CRI edge's, on either side"},
	{"k8s.io/", []string{"server", "oci/spec", "kubelet", "proxy", "internal/kube", "cmd/orlop", "cmd/orlop-kubelet", "cmd/orlop-proxy", "test"}, nil,
		"CRI types stop at the server and the spec; the kubelet and the proxy are made of Kubernetes' own"},
	{"github.com/godbus/dbus", []string{"kubelet/shutdown", "test"}, nil,
		"the bus is spoken to in one place"},
	{"github.com/google/nftables", []string{"proxy/nft"}, []string{"test"},
		"nft syntax stops at its backend"},
	{"github.com/pelletier/go-toml", []string{"internal/config"}, nil,
		"configuration is read in one place"},
	{"github.com/spf13/cobra", []string{"cmd"}, nil,
		"flags are a command's"},
	{"go.etcd.io/bbolt", []string{"server/store", "image", "storage"}, nil,
		"records are a store's"},
}

// Pure are the packages that describe and do not act, and what they must therefore not import.
var Pure = map[string][]string{
	"kubelet/admit":    {"os", "os/exec", "net/http", "log/slog"},
	"kubelet/downward": {"os", "os/exec", "net", "net/http", "log/slog"},
	"kubelet/plan":     {"os", "os/exec", "net", "net/http", "log/slog"},
	"kubelet/pod":      {"os", "os/exec", "net", "net/http", "log/slog"},
	"kubelet/resource": {"os", "os/exec", "net", "net/http", "log/slog"},
	"kubelet/spec":     {"os", "os/exec", "net", "net/http", "log/slog"},
	"proxy/model":      {"os", "os/exec", "net", "net/http", "log/slog"},
	"oci/spec":         {"os", "os/exec", "io/ioutil", "net", "net/http", "path/filepath", "log", "log/slog"},
}

// Unlinked are what must not be among the dependencies of a package, directly or not: the beginnings of paths.
var Unlinked = map[string][]string{
	"conmon/...":       {"google.golang.org/grpc", "k8s.io/", "github.com/containers/"},
	"cmd/orlop-conmon": {"google.golang.org/grpc", "k8s.io/", "github.com/containers/"},
	"server/...":       {"github.com/opencontainers/runc/libcontainer"},
	// The Kubernetes clients would cost the daemon memory.
	"cmd/orlop": {"k8s.io/client-go/kubernetes", "k8s.io/client-go/informers"},
	// They use internal/kube instead: the clientset would double their memory.
	"cmd/orlop-kubelet": {"k8s.io/client-go/kubernetes"},
	"cmd/orlop-proxy":   {"k8s.io/client-go/kubernetes"},
	"proxy/...":         {"k8s.io/client-go/kubernetes"},
}

// NoGo are the directories that hold no Go.
var NoGo = []string{"contrib", "completions", "docs", "examples"}

// Allowed tells whether a package in directory from may import the one in directory to; both are relative to the
// module's root. testFile is true for a _test.go file.
func Allowed(from, to string, testFile bool) bool {
	if kit(to) {
		return testFile || kit(from)
	}
	rule, ok := ruleOf(from)
	if !ok {
		return false
	}
	if inTree(to, topOf(rule.Tree)) {
		return true
	}
	for _, tree := range rule.May {
		if tree == Anything || inTree(to, tree) {
			return true
		}
	}
	return false
}

// kit tells whether a package is for tests: those in test, and those beside what they help to test ("storagetest").
func kit(dir string) bool { return inTree(dir, "test") || strings.HasSuffix(dir, "test") }

func ruleOf(dir string) (Rule, bool) {
	var best Rule
	for _, r := range Rules {
		if inTree(dir, r.Tree) && len(r.Tree) > len(best.Tree) {
			best = r
		}
	}
	return best, best.Tree != ""
}

// topOf is the first element of a path: cmd/orlop-conmon lies in the tree cmd.
func topOf(dir string) string {
	top, _, _ := strings.Cut(dir, "/")
	return top
}

func inTree(dir, tree string) bool { return dir == tree || strings.HasPrefix(dir, tree+"/") }

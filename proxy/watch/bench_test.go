package watch

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/orlop/orlop/internal/kube"
	"github.com/orlop/orlop/internal/kube/kubetest"
	"github.com/orlop/orlop/proxy/model"
)

// serverEnv tells a child process which API server to follow: see BenchmarkMemory.
const serverEnv = "ORLOP_BENCH_SERVER"

func TestMain(m *testing.M) {
	if server := os.Getenv(serverEnv); server != "" {
		measure(server)
		return
	}
	os.Exit(m.Run())
}

// fill gives a server as many Services with two endpoints each as a benchmark asks for, as large as real ones are.
func fill(s *kubetest.Server, services int) {
	for i := range services {
		name := fmt.Sprintf("service-%05d", i)
		svc := service(name, fmt.Sprintf("10.%d.%d.%d", 96+i>>16, i>>8&255, i&255))
		svc.Spec.Selector = map[string]string{"app.kubernetes.io/name": name}
		svc.Labels = map[string]string{"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "Helm"}
		svc.UID, svc.CreationTimestamp = "6b0ad9d4-37dd-4e4c-8ad8-8b9a0e3f2c11", metav1.Now()
		svc.ManagedFields = []metav1.ManagedFieldsEntry{{
			Manager: "kubectl", Operation: "Apply", APIVersion: "v1", FieldsType: "FieldsV1",
			FieldsV1: &metav1.FieldsV1{Raw: []byte(`{"f:metadata":{"f:labels":{"f:app.kubernetes.io/name":{}}},"f:spec":{"f:ports":{"k:{\"port\":80,\"protocol\":\"TCP\"}":{".":{},"f:name":{},"f:port":{},"f:protocol":{},"f:targetPort":{}}},"f:selector":{}}}`)},
		}}
		slice := slice(name+"-x7k2p", name, fmt.Sprintf("10.1.%d.%d", i>>8&255, i&255), fmt.Sprintf("10.2.%d.%d", i>>8&255, i&255))
		slice.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Service", Name: name, UID: svc.UID}}
		slice.ManagedFields = svc.ManagedFields
		for j := range slice.Endpoints {
			node := fmt.Sprintf("node-%03d", (i+j)%100)
			slice.Endpoints[j].NodeName = &node
			slice.Endpoints[j].TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: "ns", Name: fmt.Sprintf("%s-7d4b9c6f5-%05d", name, j), UID: svc.UID}
		}
		s.Set(svc, slice)
	}
	s.Set(thisNode())
}

// BenchmarkMemory is what a process costs that follows an API server with this many Services, and gives what it hears to
// the model: its memory with the program's pages, and how long it takes to hear all.
func BenchmarkMemory(b *testing.B) {
	for _, services := range []int{10, 1000, 10000} {
		b.Run(strconv.Itoa(services), func(b *testing.B) {
			s := kubetest.New(b)
			fill(s, services)
			program := copyOfProgram(b)
			for b.Loop() {
				cmd := exec.Command(program)
				cmd.Env = append(os.Environ(), serverEnv+"="+s.URL)
				cmd.Stderr = os.Stderr
				out, err := cmd.Output()
				if err != nil {
					b.Fatal(err)
				}
				for line := range strings.Lines(string(out)) {
					unit, value, _ := strings.Cut(strings.TrimSpace(line), " ")
					n, err := strconv.ParseFloat(value, 64)
					if err != nil {
						b.Fatalf("child says %q", line)
					}
					b.ReportMetric(n, unit)
				}
			}
		})
	}
}

// copyOfProgram shares no pages with this process, so that a child's share of its file is all that it uses.
func copyOfProgram(b *testing.B) string {
	b.Helper()
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		b.Fatal(err)
	}
	program := filepath.Join(b.TempDir(), "watch")
	if err := os.WriteFile(program, data, 0o755); err != nil {
		b.Fatal(err)
	}
	return program
}

// held is a sink that holds what a proxy does.
type held struct {
	*recorder
	state *model.State
}

func (h held) SetService(s *model.Service)       { h.state.SetService(s) }
func (h held) SetSlice(s *model.Slice)           { h.state.SetSlice(s) }
func (h held) DeleteService(n model.Name)        { h.state.DeleteService(n) }
func (h held) DeleteSlice(service, n model.Name) { h.state.DeleteSlice(service, n) }

// measure is the child of BenchmarkMemory.
func measure(server string) {
	client, err := kube.New(&rest.Config{Host: server})
	if err != nil {
		panic(err)
	}
	began := time.Now()
	report := func(unit string, value float64) { fmt.Println(unit, value) }
	sink := held{newRecorder(), model.NewState(model.Node{Name: "here"}, model.Network{Families: []model.Family{model.IPv4}})}
	go func() {
		if err := (&API{Client: client, Node: "here", Log: slog.New(slog.DiscardHandler)}).Run(context.Background(), sink); err != nil {
			panic(err)
		}
	}()
	for !sink.allSynced() {
		<-sink.told
	}
	report("ms-to-synced", float64(time.Since(began).Milliseconds()))
	report("MB-pss-at-sync", pss())
	sink.state.Commit()
	report("MB-pss-committed", pss())
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	report("MB-live-heap", float64(m.HeapAlloc)/1e6)
	debug.FreeOSMemory()
	report("MB-pss-returned", pss())
	runtime.KeepAlive(sink)
}

// pss is the process's share of memory in MB, with what it has of files.
func pss() float64 {
	f, err := os.Open("/proc/self/smaps_rollup")
	if err != nil {
		panic(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "Pss:"); ok {
			kilobytes, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			if err != nil {
				panic(err)
			}
			return kilobytes * 1024 / 1e6
		}
	}
	panic("no Pss in smaps_rollup")
}

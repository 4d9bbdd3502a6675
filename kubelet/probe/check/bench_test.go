package check

import (
	"net/http"
	"net/http/httptest"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// BenchmarkHTTP is an attempt and the server's answer to it, both in this process.
func BenchmarkHTTP(b *testing.B) {
	server := httptest.NewServer(http.HandlerFunc(site))
	defer server.Close()
	port := intstr.Parse(server.URL[len("http://127.0.0.1:"):])
	spec := &v1.Probe{ProbeHandler: v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Path: "/status/200", Port: port}}}
	p := &Prober{}
	b.ReportAllocs()
	for b.Loop() {
		if result, output, err := p.Once(b.Context(), spec, target); result != Success {
			b.Fatal(result, output, err)
		}
	}
}

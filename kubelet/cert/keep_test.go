package cert

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	certificates "k8s.io/api/certificates/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"github.com/orlop/orlop/internal/kube/kubetest"
)

// newKeeper keeps the client certificate of a node in dir.
func newKeeper(server *kubetest.Server, dir string) *keeper {
	return &keeper{
		files: files{dir: dir, prefix: "kubelet-client"}, signer: certificates.KubeAPIServerClientKubeletSignerName,
		template: x509.CertificateRequest{Subject: subject("n")}, log: slog.New(slog.DiscardHandler),
		config: func(*tls.Certificate) (*rest.Config, error) { return &rest.Config{Host: server.URL}, nil },
	}
}

// next waits for a new certificate.
func next(t *testing.T, k *keeper) *tls.Certificate {
	t.Helper()
	select {
	case <-k.renewed:
	case <-time.After(20 * time.Second):
		t.Fatal("no certificate within 20 s")
	}
	return k.current()
}

// TestRenewal: a certificate that is about to end is renewed, and what is kept is what a restart begins with.
func TestRenewal(t *testing.T) {
	a := newAuthority(t)
	server := kubetest.New(t)
	var asked atomic.Int32
	server.Break(kubetest.Faults{OnCreate: func(o kubetest.Object) {
		a.lifetime = time.Hour
		if asked.Add(1) == 1 {
			a.lifetime = time.Minute // of two hours
		}
		a.approve(t, o)
	}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dir := t.TempDir()
	k := newKeeper(server, dir)
	if err := k.start(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if k.current() != nil {
		t.Error("there is a certificate before one was given")
	}
	for k.current() == nil || time.Until(k.current().Leaf.NotAfter) < 30*time.Minute {
		next(t, k)
	}
	if n := asked.Load(); n != 2 {
		t.Errorf("%d certificates were asked for, want 2", n)
	}
	cancel()

	again := newKeeper(server, dir)
	if err := again.start(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := again.current(); got == nil || !got.Leaf.Equal(k.current().Leaf) {
		t.Errorf("after a restart there is another certificate")
	}
	other := newKeeper(server, dir)
	other.template.DNSNames = []string{"n"}
	if err := other.start(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := next(t, other); len(got.Leaf.DNSNames) != 1 {
		t.Errorf("a node with another name has %+v", got.Leaf)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*-updated.pem")); err != nil || len(left) > 0 {
		t.Errorf("left is %v, %v", left, err)
	}
}

// TestDeniedRequest is followed by another one.
func TestDeniedRequest(t *testing.T) {
	a := newAuthority(t)
	server := kubetest.New(t)
	var asked atomic.Int32
	server.Break(kubetest.Faults{OnCreate: func(o kubetest.Object) {
		r := a.approve(t, o)
		if asked.Add(1) == 1 {
			r.Status = certificates.CertificateSigningRequestStatus{Conditions: []certificates.CertificateSigningRequestCondition{
				{Type: certificates.CertificateDenied, Status: v1.ConditionTrue, Reason: "Test"},
			}}
		}
	}})
	k := newKeeper(server, t.TempDir())
	if err := k.start(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if next(t, k) == nil || asked.Load() != 2 {
		t.Errorf("%d requests were made", asked.Load())
	}
}

// TestFirstCertificate is used until there is one of its own, which is asked for at once.
func TestFirstCertificate(t *testing.T) {
	a := newAuthority(t)
	server := kubetest.New(t)
	server.Break(kubetest.Faults{Refuse: map[string]int{"certificatesigningrequests": 503}})
	k := newKeeper(server, t.TempDir())
	key, request, err := k.request()
	if err != nil {
		t.Fatal(err)
	}
	signed, err := a.sign(request.Spec.Request)
	if err != nil {
		t.Fatal(err)
	}
	first, err := tls.X509KeyPair(signed, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.start(t.Context(), &first); err != nil {
		t.Fatal(err)
	}
	if k.current() != &first {
		t.Error("the first certificate is not used")
	}
	server.Break(kubetest.Faults{OnCreate: func(o kubetest.Object) { a.approve(t, o) }})
	if got := next(t, k); got == &first || got == nil {
		t.Error("the first certificate was not replaced")
	}
}

func TestRenewalTime(t *testing.T) {
	begin := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	leaf := &x509.Certificate{NotBefore: begin, NotAfter: begin.Add(100 * time.Hour)}
	early, late := 100*time.Hour, time.Duration(0)
	for range 1000 {
		at := renewal(leaf).Sub(begin)
		early, late = min(early, at), max(late, at)
	}
	if early < 70*time.Hour || late > 90*time.Hour || late-early < 10*time.Hour {
		t.Errorf("certificates of 100 hours are renewed after %v to %v", early, late)
	}
}

package api

import (
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// replace writes a file so that it is seen to have changed.
func replace(t *testing.T, path string, text []byte, age time.Duration) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Now(), time.Now().Add(-age)); err != nil {
		t.Fatal(err)
	}
}

func TestCertFiles(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "c"), filepath.Join(dir, "k")
	if _, err := CertFiles(certFile, keyFile); err == nil {
		t.Error("files that are not there are a certificate")
	}
	cert1, key1, err := selfSign("one", nil)
	if err != nil {
		t.Fatal(err)
	}
	cert2, key2, err := selfSign("two", nil)
	if err != nil {
		t.Fatal(err)
	}
	replace(t, certFile, cert1, 2*time.Minute)
	replace(t, keyFile, key2, 2*time.Minute)
	if _, err := CertFiles(certFile, keyFile); err == nil {
		t.Error("a certificate goes with another one's key")
	}
	replace(t, keyFile, key1, time.Minute)
	get, err := CertFiles(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	name := func() string {
		t.Helper()
		c, err := get(nil)
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf.DNSNames[0]
	}
	if name() != "one" {
		t.Error(name())
	}
	replace(t, certFile, cert2, 0) // half of it is replaced
	if name() != "one" {
		t.Error(name())
	}
	replace(t, keyFile, key2, 0)
	if name() != "two" {
		t.Error(name())
	}
}

func TestSelfSigned(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	ip := net.IPv4(192, 0, 2, 7)
	certFile, keyFile, err := SelfSigned(dir, "n", []net.IP{ip})
	if err != nil {
		t.Fatal(err)
	}
	c, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"n", "192.0.2.7"} {
		if err := c.Leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	if info, err := os.Stat(keyFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, _, err := SelfSigned(dir, "n", nil); err != nil {
		t.Fatal(err)
	}
	if again, err := tls.LoadX509KeyPair(certFile, keyFile); err != nil || again.Leaf.SerialNumber.Cmp(c.Leaf.SerialNumber) != 0 {
		t.Errorf("a good certificate was replaced, %v", err)
	}
}

package plugin

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// install makes a plugin that counts its runs, notes what it was asked, and answers with a text; and its configuration.
func install(t *testing.T, answer string) (all Providers, dir string) {
	t.Helper()
	dir = t.TempDir()
	program := fmt.Sprintf("#!/bin/sh\necho run >> %[1]s/runs\ncat > %[1]s/asked\necho \"$1 $WHO\" > %[1]s/given\ncat <<'EOF'\n%[2]s\nEOF\n", dir, answer)
	if err := os.WriteFile(filepath.Join(dir, "cloud"), []byte(program), 0o755); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "config.yaml")
	err := os.WriteFile(config, []byte(`
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: cloud
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: ["*.cloud.example", "other.example:5000/team"]
  defaultCacheDuration: 1h
  args: [get]
  env: [{name: WHO, value: me}]
`), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if all, err = Load(config, dir); err != nil {
		t.Fatal(err)
	}
	return all, dir
}

func reply(rest string) string {
	return `{"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderResponse", ` + rest + `}`
}

// runs is how often the plugin was run.
func runs(t *testing.T, dir string) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "runs"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Count(string(data), "run\n")
}

func TestLogins(t *testing.T) {
	all, dir := install(t, reply(`"cacheKeyType": "Registry", "auth": {"*.cloud.example": {"username": "u", "password": "p"}}`))
	if got, err := all.Logins(t.Context(), "elsewhere.example/a"); got != nil || err != nil || runs(t, dir) != 0 {
		t.Errorf("another registry's: %v, %v", got, err)
	}
	got, err := all.Logins(t.Context(), "eu.cloud.example/team/app:1")
	if err != nil || len(got) != 1 || got[0]["*.cloud.example"].Username != "u" || got[0]["*.cloud.example"].Password != "p" {
		t.Fatalf("%v, %v", got, err)
	}
	asked, _ := os.ReadFile(filepath.Join(dir, "asked"))
	given, _ := os.ReadFile(filepath.Join(dir, "given"))
	if want := `{"kind":"CredentialProviderRequest","apiVersion":"credentialprovider.kubelet.k8s.io/v1","image":"eu.cloud.example/team/app"}`; string(asked) != want || string(given) != "get me\n" {
		t.Errorf("asked %s with %s, want %s", asked, given, want)
	}
}

// TestCache: what an answer is for is not asked again until the answer is too old.
func TestCache(t *testing.T) {
	for _, tt := range []struct {
		key, lasts string
		want       int // runs for one image, the same again, another of its registry, and one of another registry
	}{
		{"Image", "1h", 3}, {"Registry", "1h", 2}, {"Global", "1h", 1}, {"Global", "0s", 4},
	} {
		all, dir := install(t, reply(fmt.Sprintf(`"cacheKeyType": %q, "cacheDuration": %q, "auth": null`, tt.key, tt.lasts)))
		for _, image := range []string{"a.cloud.example/x:1", "a.cloud.example/x:2", "a.cloud.example/y", "b.cloud.example/x"} {
			if _, err := all.Logins(t.Context(), image); err != nil {
				t.Fatal(err)
			}
		}
		if got := runs(t, dir); got != tt.want {
			t.Errorf("%s for %s: %d runs, want %d", tt.key, tt.lasts, got, tt.want)
		}
		for key, a := range all[0].cache {
			all[0].cache[key] = answer{a.keyring, time.Now()}
		}
		if _, err := all.Logins(t.Context(), "a.cloud.example/x:1"); err != nil || runs(t, dir) != tt.want+1 {
			t.Errorf("%s: an answer that is too old counts (%v)", tt.key, err)
		}
	}
}

func TestBadAnswers(t *testing.T) {
	for _, text := range []string{
		"", "{}", reply(`"cacheKeyType": "Planet"`),
		`{"apiVersion": "credentialprovider.kubelet.k8s.io/v2", "kind": "CredentialProviderResponse", "cacheKeyType": "Image"}`,
	} {
		all, _ := install(t, text)
		if _, err := all.Logins(t.Context(), "a.cloud.example/x"); err == nil || !strings.Contains(err.Error(), "credential provider cloud") {
			t.Errorf("%q was taken: %v", text, err)
		}
	}
	all, dir := install(t, "")
	if err := os.WriteFile(filepath.Join(dir, "cloud"), []byte("#!/bin/sh\necho no metadata >&2; exit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := all.Logins(t.Context(), "a.cloud.example/x"); err == nil || !strings.Contains(err.Error(), "exit status 3: no metadata") {
		t.Errorf("a plugin that fails: %v", err)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.yaml")
	for _, bad := range []string{
		"kind: CredentialProviderConfig",
		"apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nplugins: []",
		"apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders: [{name: ../x, apiVersion: v9}]",
	} {
		if err := os.WriteFile(file, []byte(bad), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(file, dir); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if _, err := Load(t.TempDir(), dir); err == nil {
		t.Error("an empty directory was taken")
	}
}

// FuzzParse: whatever a plugin answers, it is a response or an error.
func FuzzParse(f *testing.F) {
	f.Add([]byte(reply(`"cacheKeyType": "Image"`)))
	f.Add([]byte(`{"auth": 1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p := &provider{}
		p.APIVersion = protocolVersions[0]
		if got, err := p.parse(data); (got == nil) == (err == nil) || (got != nil && got.APIVersion != p.APIVersion) {
			t.Errorf("%v, %v", got, err)
		}
	})
}

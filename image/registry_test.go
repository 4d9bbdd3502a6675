package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

func small(t testing.TB) testImage {
	return testImage{layers: []layerSpec{{files(t, "f", t.Name()), "gzip"}}}
}

// wantPull pulls and compares the error; nil means that it must work.
func (r *rig) wantPull(what, name string, auth *Auth, want error) {
	r.t.Helper()
	id, err := r.service.Pull(r.t.Context(), name, auth)
	if want == nil && (err != nil || id == "") {
		r.t.Errorf("%s: Pull = %q, %v", what, id, err)
	}
	if want != nil && !errors.Is(err, want) {
		r.t.Errorf("%s: err = %v, want %v", what, err, want)
	}
}

func TestBasicAuth(t *testing.T) {
	r := newRig(t)
	r.push("private", "v1", small(t))
	name := r.host + "/private:v1"
	r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
		if user, password, _ := req.BasicAuth(); user == "user" && password == "secret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	r.wantPull("anonymous", name, nil, ErrDenied)
	r.wantPull("wrong password", name, &Auth{Username: "user", Password: "guess"}, ErrDenied)
	r.wantPull("of another server", name, &Auth{Username: "user", Password: "secret", ServerAddress: "other.example"}, ErrDenied)
	r.wantPull("base64", name, &Auth{Auth: "dXNlcjpzZWNyZXQ="}, nil)
	r.wantPull("wrong password, image present", name, &Auth{Username: "user", Password: "guess"}, ErrDenied)
	r.service.cfg.AuthFile = writeFile(t, t.TempDir(), "auth.json", fmt.Sprintf(`{"auths":{%q:{"auth":"dXNlcjpzZWNyZXQ="}}}`, r.host))
	r.wantPull("auth file", name, nil, nil)
}

// TestTokens has a registry that asks for bearer tokens and a server that gives them for an identity token.
func TestTokens(t *testing.T) {
	r := newRig(t)
	r.push("private", "v1", small(t))
	name := r.host + "/private:v1"
	r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
		if req.URL.Path == "/token" {
			if req.FormValue("grant_type") != "refresh_token" || req.FormValue("refresh_token") != "identity" {
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			json.NewEncoder(w).Encode(map[string]any{"access_token": "good", "expires_in": 60})
			return true
		}
		if req.Header.Get("Authorization") == "Bearer good" {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="test"`, r.server.URL))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	r.wantPull("anonymous", name, nil, ErrDenied)
	r.wantPull("wrong registry token", name, &Auth{RegistryToken: "bad"}, ErrDenied)
	r.wantPull("wrong identity token", name, &Auth{IdentityToken: "bad"}, ErrDenied)
	r.wantPull("identity token", name, &Auth{IdentityToken: "identity"}, nil)
	r.wantPull("registry token", name, &Auth{RegistryToken: "good"}, nil)
}

// TestRegistriesConf changes the file under a running service: each change counts at once.
func TestRegistriesConf(t *testing.T) {
	r := newRig(t)
	r.push("lib/app", "v1", small(t))
	conf := func(text string) {
		t.Helper()
		if err := os.WriteFile(r.cfg.RegistriesConf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	conf(fmt.Sprintf("[[registry]]\nlocation = \"upstream.invalid\"\n[[registry.mirror]]\nlocation = %q\n", r.host+"/lib"))
	leaked := false
	r.setHook(func(_ http.ResponseWriter, req *http.Request) bool {
		leaked = leaked || req.Header.Get("Authorization") != ""
		return false
	})
	r.wantPull("mirror", "upstream.invalid/app:v1", &Auth{Username: "u", Password: "p"}, nil)
	if leaked {
		t.Error("the mirror was shown the credentials of the upstream registry")
	}
	if _, err := r.service.Resolve("upstream.invalid/app:v1"); err != nil {
		t.Errorf("the image must have the name that was asked for: %v", err)
	}
	conf(fmt.Sprintf("[[registry]]\nlocation = %q\nblocked = true\n", r.host))
	r.wantPull("blocked", r.host+"/lib/app:v1", nil, ErrDenied)
	conf(fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", r.host))
	if err := os.RemoveAll(r.cfg.CertsDir); err != nil {
		t.Fatal(err)
	}
	r.wantPull("insecure", r.host+"/lib/app:v1", nil, nil)
	conf("")
	r.wantPull("unknown certificate", r.host+"/lib/app:v1", nil, ErrUnavailable)
	conf("nonsense [")
	if _, err := r.service.Pull(t.Context(), r.host+"/lib/app:v1", nil); err == nil {
		t.Error("a broken registries.conf was ignored")
	}
}

func TestPolicy(t *testing.T) {
	r := newRig(t)
	r.push("app", "v1", small(t))
	if err := os.WriteFile(r.cfg.PolicyPath, []byte(`{"default":[{"type":"reject"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	r.wantPull("rejected", r.host+"/app:v1", nil, ErrPolicy)
	if err := os.WriteFile(r.cfg.PolicyPath, []byte(`{"default":[{"type":"reject"}],"transports":{"docker":{"`+r.host+
		`/app":[{"type":"insecureAcceptAnything"}]}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	r.wantPull("accepted by scope", r.host+"/app:v1", nil, nil)
	if err := os.Remove(r.cfg.PolicyPath); err != nil {
		t.Fatal(err)
	}
	r.wantPull("a policy file that was asked for is missing", r.host+"/app:v1", nil, ErrPolicy)
}

// TestRegistryFailures answers with the errors that registries give.
func TestRegistryFailures(t *testing.T) {
	r := newRig(t)
	r.push("app", "v1", small(t))
	name := r.host + "/app:v1"
	r.wantPull("unknown tag", r.host+"/app:v2", nil, ErrNotFound)
	r.wantPull("unknown repository", r.host+"/nothing:v1", nil, ErrNotFound)
	r.wantPull("unknown digest", r.host+"/app@"+someDigest, nil, ErrNotFound)
	r.wantPull("no name", "Not A Name", nil, ErrInvalidName)
	for status, want := range map[int]error{403: ErrDenied, 500: ErrUnavailable, 503: ErrUnavailable} {
		r.setHook(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(status); return true })
		r.wantPull(fmt.Sprint("status ", status), name, nil, want)
	}
	failures := 2
	r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, "/blobs/") || failures == 0 {
			return false
		}
		if strings.Contains(req.URL.Path, r.configDigest("app", "v1")) {
			return false
		}
		failures--
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	r.wantPull("a layer fails twice", name, nil, nil)
	r.server.Close()
	r.wantPull("nobody listens", name, nil, ErrUnavailable)
}

// configDigest reads the config's digest of a pushed image, without the hook.
func (r *rig) configDigest(repo, tag string) string {
	r.t.Helper()
	hook := r.hook.Swap(nil)
	defer r.hook.Store(hook)
	resp, err := r.server.Client().Get(r.server.URL + "/v2/" + repo + "/manifests/" + tag)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	var m imgspec.Manifest
	if err := json.NewDecoder(resp.Body).Decode(&m); err != nil {
		r.t.Fatal(err)
	}
	return m.Config.Digest.String()
}

// TestStall has a registry that falls silent, in the manifest and in the middle of a layer.
func TestStall(t *testing.T) {
	r := newRig(t, func(c *Config) { c.StallTimeout = 200 * time.Millisecond })
	saved := retryDelays
	retryDelays = nil
	t.Cleanup(func() { retryDelays = saved })
	r.push("app", "v1", small(t))
	config := r.configDigest("app", "v1")
	for _, part := range []string{"/manifests/", "/blobs/"} {
		r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.Contains(req.URL.Path, part) || strings.Contains(req.URL.Path, config) {
				return false
			}
			if part == "/blobs/" {
				w.WriteHeader(http.StatusOK)
				w.Write([]byte{0x1f})
				w.(http.Flusher).Flush()
			}
			<-req.Context().Done()
			return true
		})
		r.wantPull("stalls in "+part, r.host+"/app:v1", nil, ErrUnavailable)
	}
	r.wantNothing()
}

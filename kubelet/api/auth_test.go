package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	authn "k8s.io/api/authentication/v1"
	authz "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// reviews is an API server that knows the token "good" of sa, and allows what is in allowed: "USER VERB SUBRESOURCE".
type reviews struct {
	client  *fake.Clientset
	allowed []string
	err     error
	asked   []string
}

func newReviews(allowed ...string) *reviews {
	r := &reviews{client: fake.NewClientset(), allowed: allowed}
	r.client.PrependReactor("create", "tokenreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		review := a.(clienttesting.CreateAction).GetObject().(*authn.TokenReview).DeepCopy()
		r.asked = append(r.asked, "token "+review.Spec.Token)
		review.Status.Authenticated = review.Spec.Token == "good"
		review.Status.User = authn.UserInfo{Username: "sa", Groups: []string{"sas", authenticatedGroup}, Extra: map[string]authn.ExtraValue{"k": {"v"}}}
		return true, review, r.err
	})
	r.client.PrependReactor("create", "subjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		review := a.(clienttesting.CreateAction).GetObject().(*authz.SubjectAccessReview).DeepCopy()
		what := review.Spec.ResourceAttributes
		if what.Resource != "nodes" || what.Name != "n" || what.Version != "v1" || what.Namespace != "" {
			return true, nil, fmt.Errorf("asked for %+v", what)
		}
		asked := review.Spec.User + " " + what.Verb + " " + what.Subresource
		r.asked = append(r.asked, asked)
		review.Status.Allowed = slices.Contains(r.allowed, asked)
		return true, review, r.err
	})
	return r
}

func (r *reviews) config() AuthConfig {
	return AuthConfig{
		Node: "n", Tokens: r.client.AuthenticationV1().TokenReviews(), TokenTTL: 2 * time.Minute,
		Access: r.client.AuthorizationV1().SubjectAccessReviews(), AllowedTTL: 5 * time.Minute, DeniedTTL: 30 * time.Second,
	}
}

func wrapped(t *testing.T, cfg AuthConfig) http.Handler {
	t.Helper()
	a, err := NewAuth(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a.Wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "in") }), slog.New(slog.DiscardHandler))
}

func with(h http.Handler, token, path string) (int, string) {
	r := httptest.NewRequest("GET", path, nil)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, strings.TrimSpace(w.Body.String())
}

func TestTokens(t *testing.T) {
	r := newReviews("sa get metrics", "sa get proxy")
	h := wrapped(t, r.config())
	for _, tt := range []struct {
		token, path string
		code        int
		body        string
	}{
		{"good", "/metrics", 200, "in"},
		{"good", "/metrics/cadvisor", 200, "in"},
		{"good", "/pods", 200, "in"}, // by proxy
		{"good", "/stats/summary", 403, "Forbidden (user=sa, verb=get, resource=nodes, subresource(s)=[stats])"},
		{"bad", "/metrics", 401, "Unauthorized"},
		{"", "/metrics", 401, "Unauthorized"},
	} {
		if code, body := with(h, tt.token, tt.path); code != tt.code || body != tt.body {
			t.Errorf("%q %s: %d %s", tt.token, tt.path, code, body)
		}
	}
	if want := []string{"token good", "sa get metrics", "sa get pods", "sa get proxy", "sa get stats", "token bad"}; !slices.Equal(r.asked, want) {
		t.Errorf("asked %q\nwant  %q", r.asked, want)
	}
}

func TestCacheTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReviews("sa get metrics")
		h := wrapped(t, r.config())
		both := func() {
			with(h, "good", "/metrics")
			with(h, "good", "/stats/summary")
		}
		both()
		r.asked = nil
		for _, tt := range []struct {
			after time.Duration
			want  []string
		}{
			{29 * time.Second, nil},
			{time.Second, []string{"sa get stats"}},
			{89 * time.Second, []string{"sa get stats"}},
			{time.Second, []string{"token good"}},
			{3 * time.Minute, []string{"token good", "sa get metrics", "sa get stats"}},
		} {
			time.Sleep(tt.after)
			both()
			if !slices.Equal(r.asked, tt.want) {
				t.Errorf("after %s: asked %q, want %q", tt.after, r.asked, tt.want)
			}
			r.asked = nil
		}
	})
}

func TestReviewsFail(t *testing.T) {
	r := newReviews()
	cfg := r.config()
	cfg.Anonymous = true
	h := wrapped(t, cfg)
	r.err = errors.New("no API server")
	if code, _ := with(h, "good", "/pods"); code != 401 {
		t.Errorf("a token that nobody knows: %d", code)
	}
	if code, body := with(h, "", "/pods"); code != 500 || !strings.HasPrefix(body, "Authorization error (user=system:anonymous") {
		t.Errorf("nobody decides: %d %s", code, body)
	}
	r.err, r.allowed = nil, []string{"system:anonymous get pods"}
	if code, _ := with(h, "", "/pods"); code != 200 {
		t.Errorf("errors are remembered: %d", code)
	}
	if code, _ := with(h, "bad", "/pods"); code != 401 {
		t.Errorf("a bad token passes as anonymous: %d", code)
	}
}

func TestAlwaysAllow(t *testing.T) {
	h := wrapped(t, AuthConfig{Node: "n", Anonymous: true})
	if code, _ := with(h, "", "/pods"); code != 200 {
		t.Errorf("%d", code)
	}
}

func TestAttributes(t *testing.T) {
	for _, tt := range []struct{ method, path, verb, sub string }{
		{"GET", "/pods", "get", "pods,proxy"},
		{"GET", "/pods/", "get", "pods,proxy"},
		{"GET", "/runningpods/", "get", "pods,proxy"},
		{"GET", "/healthz/syncloop", "get", "healthz,proxy"},
		{"GET", "/configz", "get", "configz,proxy"},
		{"GET", "/stats/summary", "get", "stats"},
		{"GET", "/metrics/resource", "get", "metrics"},
		{"GET", "/logs/messages", "get", "log"},
		{"POST", "/checkpoint/ns/p/c", "create", "checkpoint"},
		{"POST", "/exec/ns/p/c", "create", "proxy"},
		{"GET", "/exec/ns/p/c", "get", "proxy"},
		{"PUT", "/debug/flags/v", "update", "proxy"},
		{"PATCH", "/podsmith", "patch", "proxy"},
		{"DELETE", "/", "delete", "proxy"},
		{"GET", "/containerLogs/ns/p/c", "get", "proxy"},
	} {
		verb, subs := attributes(tt.method, tt.path)
		if verb != tt.verb || strings.Join(subs, ",") != tt.sub {
			t.Errorf("%s %s: %s %s", tt.method, tt.path, verb, subs)
		}
	}
}

// TestPathTricks: what is allowed for one path must not be served from another.
func TestPathTricks(t *testing.T) {
	cfg, _, _ := config(t)
	r := newReviews("sa get pods")
	auth, err := NewAuth(r.config())
	if err != nil {
		t.Fatal(err)
	}
	cfg.Auth = auth
	h := server(t, cfg).Handler()
	for _, path := range []string{"/pods/../configz", "/pods/%2e%2e/configz", "/pods%2f..%2fconfigz", "//configz", "/./configz", "/pods/..%2fconfigz"} {
		if code, body := with(h, "good", path); code == 200 || strings.Contains(body, "kubeletconfig") {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	if code, _ := with(h, "good", "/pods"); code != 200 {
		t.Errorf("/pods: %d", code)
	}
}

func TestCertificates(t *testing.T) {
	ours, other := newPKI(t), newPKI(t)
	r := newReviews("admin get proxy", "system:anonymous get proxy")
	cfg := r.config()
	cfg.ClientCA, cfg.Anonymous = ours.file, true
	tlsConfig, err := TLS(TLSOptions{GetCertificate: ours.serving})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(wrapped(t, cfg))
	s.TLS = tlsConfig
	s.TLS.Certificates = []tls.Certificate{ours.leaf} // without any, httptest brings its own
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.StartTLS()
	defer s.Close()
	get := func(certs ...tls.Certificate) int {
		t.Helper()
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: ours.pool,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				return &append(certs, tls.Certificate{})[0], nil
			}}}}
		resp, err := client.Get(s.URL + "/x")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	admin := pkix.Name{CommonName: "admin", Organization: []string{"ops"}}
	for _, tt := range []struct {
		name string
		cert []tls.Certificate
		want int
	}{
		{"none", nil, 200},
		{"ours", []tls.Certificate{ours.issue(admin, x509.ExtKeyUsageClientAuth)}, 200},
		{"ours, of somebody who may not", []tls.Certificate{ours.issue(pkix.Name{CommonName: "guest"}, x509.ExtKeyUsageClientAuth)}, 403},
		{"of a server", []tls.Certificate{ours.issue(admin, x509.ExtKeyUsageServerAuth)}, 401},
		{"without a name", []tls.Certificate{ours.issue(pkix.Name{}, x509.ExtKeyUsageClientAuth)}, 401},
		{"of another CA", []tls.Certificate{other.issue(admin, x509.ExtKeyUsageClientAuth)}, 401},
	} {
		if got := get(tt.cert...); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}

	// The other CA takes over.
	text, err := os.ReadFile(other.file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ours.file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(ours.file, time.Now(), time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if got := get(other.issue(admin, x509.ExtKeyUsageClientAuth)); got != 200 {
		t.Errorf("of the new CA: %d", got)
	}
}

func TestAuthenticatedUser(t *testing.T) {
	r := newReviews()
	a, err := NewAuth(r.config())
	if err != nil {
		t.Fatal(err)
	}
	user, err := a.token(context.Background(), "good")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"sas", authenticatedGroup}, user.Groups); diff != "" {
		t.Error(diff)
	}
	p := newPKI(t)
	a.roots = clientCA(p.file)
	user, err = a.certificate([]*x509.Certificate{p.issue(pkix.Name{CommonName: "admin", Organization: []string{"ops"}}, x509.ExtKeyUsageClientAuth).Leaf})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&authn.UserInfo{Username: "admin", Groups: []string{"ops", authenticatedGroup}}, user); diff != "" {
		t.Error(diff)
	}
	for _, file := range []string{"/nonexistent/ca.crt", "/dev/null"} {
		if _, err := NewAuth(AuthConfig{ClientCA: file}); err == nil {
			t.Errorf("%s is no CA", file)
		}
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := newCache[int]()
	for i := range 3 * maxCached {
		c.put(fmt.Sprint(i), i, time.Hour)
		if len(c.all) > maxCached {
			t.Fatalf("%d entries", len(c.all))
		}
	}
}

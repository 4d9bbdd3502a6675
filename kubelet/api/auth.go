package api

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	authn "k8s.io/api/authentication/v1"
	authz "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// AuthConfig says who may ask, see the fields authentication and authorization of KubeletConfiguration.
type AuthConfig struct {
	Node      string
	ClientCA  string        // file of the CAs of client certificates; "": none is accepted
	Tokens    TokenReviews  // nil: no bearer token is accepted
	TokenTTL  time.Duration // authentication.webhook.cacheTTL
	Anonymous bool          // who shows nothing is system:anonymous

	Access     AccessReviews // nil: mode AlwaysAllow
	AllowedTTL time.Duration // authorization.webhook.cacheAuthorizedTTL
	DeniedTTL  time.Duration // authorization.webhook.cacheUnauthorizedTTL
}

// TokenReviews tells whose token one is.
type TokenReviews interface {
	Create(ctx context.Context, review *authn.TokenReview, options metav1.CreateOptions) (*authn.TokenReview, error)
}

// AccessReviews tells what somebody may do.
type AccessReviews interface {
	Create(ctx context.Context, review *authz.SubjectAccessReview, options metav1.CreateOptions) (*authz.SubjectAccessReview, error)
}

// Auth decides about requests.
type Auth struct {
	cfg    AuthConfig
	roots  *files[*x509.CertPool]  // nil: no certificate is accepted
	tokens *cache[*authn.UserInfo] // nil in it: the token is no good
	access *cache[bool]
}

// Names that the API server and its rules know.
const (
	anonymousUser        = "system:anonymous"
	unauthenticatedGroup = "system:unauthenticated"
	authenticatedGroup   = "system:authenticated"
)

// NewAuth makes an Auth. The CA file must be there, and is read anew when it changes.
func NewAuth(cfg AuthConfig) (*Auth, error) {
	a := &Auth{cfg: cfg, tokens: newCache[*authn.UserInfo](), access: newCache[bool]()}
	if cfg.ClientCA != "" {
		a.roots = clientCA(cfg.ClientCA)
		if _, err := a.roots.get(); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// Wrap lets only those requests through to h that are allowed.
func (a *Auth) Wrap(h http.Handler, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, err := a.authenticate(r)
		if err != nil {
			log.Debug("request without a valid identity", "path", r.URL.Path, "from", r.RemoteAddr, "err", err)
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		verb, subresources := attributes(r.Method, r.URL.Path)
		for _, sub := range subresources {
			allowed, err := a.allowed(r.Context(), user, verb, sub)
			if err != nil {
				log.Warn("request is refused, since nobody says that it is allowed", "user", user.Username, "path", r.URL.Path, "err", err)
				text := fmt.Sprintf("Authorization error (user=%s, verb=%s, resource=nodes, subresource=%s)", user.Username, verb, sub)
				http.Error(w, text, http.StatusInternalServerError)
				return
			}
			if allowed {
				h.ServeHTTP(w, r)
				return
			}
		}
		text := fmt.Sprintf("Forbidden (user=%s, verb=%s, resource=nodes, subresource(s)=%v)", user.Username, verb, subresources)
		http.Error(w, text, http.StatusForbidden)
	})
}

var errNobody = errors.New("neither a client certificate nor a token, and anonymous requests are not enabled")

// authenticate finds out who asks. A certificate or token that is no good is an error, also where anonymous requests
// are welcome: who shows it wants to be somebody.
func (a *Auth) authenticate(r *http.Request) (*authn.UserInfo, error) {
	var errs []error
	if a.roots != nil && r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		user, err := a.certificate(r.TLS.PeerCertificates)
		if err == nil {
			return user, nil
		}
		errs = append(errs, err)
	}
	if token := bearer(r); token != "" && a.cfg.Tokens != nil {
		user, err := a.token(r.Context(), token)
		if err == nil {
			return user, nil
		}
		errs = append(errs, err)
	}
	switch {
	case len(errs) > 0:
		return nil, errors.Join(errs...)
	case a.cfg.Anonymous:
		return &authn.UserInfo{Username: anonymousUser, Groups: []string{unauthenticatedGroup}}, nil
	}
	return nil, errNobody
}

func (a *Auth) certificate(chain []*x509.Certificate) (*authn.UserInfo, error) {
	roots, err := a.roots.get()
	if err != nil {
		return nil, err
	}
	o := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, c := range chain[1:] {
		o.Intermediates.AddCert(c)
	}
	if _, err := chain[0].Verify(o); err != nil {
		return nil, fmt.Errorf("client certificate of %s: %w", chain[0].Subject, err)
	}
	name := chain[0].Subject
	if name.CommonName == "" {
		return nil, errors.New("client certificate has no common name")
	}
	return &authn.UserInfo{Username: name.CommonName, Groups: slices.Concat(name.Organization, []string{authenticatedGroup})}, nil
}

// bearer is the token of a request; "" without one.
func bearer(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

var errToken = errors.New("invalid bearer token")

// token asks the API server whose token this is. Only the token's hash is kept.
func (a *Auth) token(ctx context.Context, token string) (*authn.UserInfo, error) {
	hash := sha256.Sum256([]byte(token))
	key := string(hash[:])
	user, ok := a.tokens.get(key)
	if !ok {
		review, err := a.cfg.Tokens.Create(ctx, &authn.TokenReview{Spec: authn.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
		if err != nil {
			return nil, fmt.Errorf("token review: %w", err)
		}
		if review.Status.Authenticated {
			user = &review.Status.User
			if !slices.Contains(user.Groups, authenticatedGroup) {
				user.Groups = append(user.Groups, authenticatedGroup)
			}
		}
		a.tokens.put(key, user, a.cfg.TokenTTL)
	}
	if user == nil {
		return nil, errToken
	}
	return user, nil
}

// attributes are the verb and the subresources of nodes by which a request is allowed: one of them is enough. The first
// is the narrower one (KEP-2862).
func attributes(method, path string) (verb string, subresources []string) {
	switch method {
	case http.MethodPost:
		verb = "create"
	case http.MethodGet:
		verb = "get"
	case http.MethodPut:
		verb = "update"
	case http.MethodPatch:
		verb = "patch"
	case http.MethodDelete:
		verb = "delete"
	}
	root, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	switch root {
	case "pods", "runningpods":
		return verb, []string{"pods", "proxy"}
	case "healthz", "configz":
		return verb, []string{root, "proxy"}
	case "stats", "metrics", "checkpoint":
		return verb, []string{root}
	case "logs":
		return verb, []string{"log"}
	}
	return verb, []string{"proxy"}
}

// allowed asks the API server whether somebody may use a subresource of this node.
func (a *Auth) allowed(ctx context.Context, user *authn.UserInfo, verb, subresource string) (bool, error) {
	if a.cfg.Access == nil {
		return true, nil
	}
	spec := authz.SubjectAccessReviewSpec{
		User: user.Username, Groups: user.Groups, UID: user.UID, Extra: map[string]authz.ExtraValue{},
		ResourceAttributes: &authz.ResourceAttributes{Verb: verb, Version: "v1", Resource: "nodes", Subresource: subresource, Name: a.cfg.Node},
	}
	for k, v := range user.Extra {
		spec.Extra[k] = authz.ExtraValue(v)
	}
	key, err := json.Marshal(spec) // with sorted keys
	if err != nil {
		return false, err
	}
	if allowed, ok := a.access.get(string(key)); ok {
		return allowed, nil
	}
	review, err := a.cfg.Access.Create(ctx, &authz.SubjectAccessReview{Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("subject access review: %w", err)
	}
	ttl := a.cfg.DeniedTTL
	if review.Status.Allowed {
		ttl = a.cfg.AllowedTTL
	}
	a.access.put(string(key), review.Status.Allowed, ttl)
	return review.Status.Allowed, nil
}

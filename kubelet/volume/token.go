package volume

import (
	"context"
	"fmt"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// A token is asked for anew when 80 % of its life, or a day, has passed, as kubelet does (KEP-1205).
const maxTokenAge = 24 * time.Hour

type tokenKey struct {
	uid      types.UID
	account  string
	audience string
	seconds  int64
}

type token struct {
	text    string
	renewAt time.Time
	expires time.Time
}

// tokens are those of pods that run.
type tokens struct {
	mu    sync.Mutex
	known map[tokenKey]token
}

func (t *tokens) get(k tokenKey) (token, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	found, ok := t.known[k]
	return found, ok
}

func (t *tokens) put(k tokenKey, v token) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known[k] = v
}

func (t *tokens) forget(uid types.UID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k := range t.known {
		if k.uid == uid {
			delete(t.known, k)
		}
	}
}

// token is a service account token that is bound to the pod. One that can't be renewed now is used for as long as it lasts.
func (m *Manager) token(ctx context.Context, p *v1.Pod, s *v1.ServiceAccountTokenProjection, defaultMode int32) (map[string]file, error) {
	path, err := cleanPath(s.Path)
	if err != nil {
		return nil, err
	}
	seconds := int64(3600)
	if s.ExpirationSeconds != nil {
		seconds = *s.ExpirationSeconds
	}
	k := tokenKey{p.UID, p.Spec.ServiceAccountName, s.Audience, seconds}
	found, known := m.tokens.get(k)
	if !known || !time.Now().Before(found.renewAt) {
		fresh, err := m.request(ctx, p, k)
		switch {
		case err == nil:
			m.tokens.put(k, fresh)
			found = fresh
		case known && time.Now().Before(found.expires):
			m.cfg.Log.Warn("service account token not renewed; the old one is used", "pod", p.Namespace+"/"+p.Name, "err", err)
		default:
			return nil, fmt.Errorf("failed to fetch token: %w", err)
		}
	}
	mode := defaultMode
	if owner := ownerFor(p); owner.uid != noID || owner.gid != noID {
		mode = 0o600
	}
	return map[string]file{path: {[]byte(found.text), mode}}, nil
}

func (m *Manager) request(ctx context.Context, p *v1.Pod, k tokenKey) (token, error) {
	r := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &k.seconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID},
	}}
	if k.audience != "" {
		r.Spec.Audiences = []string{k.audience}
	}
	now := time.Now()
	answer, err := m.cfg.Objects.ServiceAccountToken(ctx, p.Namespace, k.account, r)
	if err != nil {
		return token{}, err
	}
	life := answer.Status.ExpirationTimestamp.Sub(now)
	return token{
		text: answer.Status.Token, expires: answer.Status.ExpirationTimestamp.Time,
		renewAt: now.Add(min(life*8/10, maxTokenAge)),
	}, nil
}

package cert

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	certificates "k8s.io/api/certificates/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	watchtools "k8s.io/client-go/tools/watch"

	"github.com/orlop/orlop/internal/kube"
)

// How long it takes to be given a certificate.
const (
	approval   = 15 * time.Minute // that somebody has to approve a request, before another is made
	firstRetry = 2 * time.Second
	lastRetry  = 32 * time.Second
)

// keeper keeps a certificate: it asks for the first one, and for each next one before the last one ends.
type keeper struct {
	files    files
	signer   string
	template x509.CertificateRequest
	usages   []certificates.KeyUsage
	// config reaches the API server for a node that has this certificate, nil for none yet.
	config func(current *tls.Certificate) (*rest.Config, error)
	log    *slog.Logger

	renewed chan struct{} // tells one listener of each new certificate

	mu  sync.Mutex
	now *tls.Certificate
}

// start begins with the certificate that is in the files, or else with first, which is then replaced as soon as possible:
// it may be one that several nodes have. It goes on until ctx ends.
func (k *keeper) start(ctx context.Context, first *tls.Certificate) error {
	k.renewed = make(chan struct{}, 1)
	kept, err := k.files.load()
	if err != nil {
		return err
	}
	due := time.Now()
	if kept != nil && time.Now().Before(kept.Leaf.NotAfter) {
		k.now = kept
		if k.fits(kept.Leaf) {
			due = renewal(kept.Leaf)
		}
	} else {
		k.now = first
	}
	go k.run(ctx, due)
	return nil
}

// current is the certificate; nil before there is one, and after it has expired.
func (k *keeper) current() *tls.Certificate {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.now == nil || time.Now().After(k.now.Leaf.NotAfter) {
		return nil
	}
	return k.now
}

// renewal is when a certificate should be renewed: after 70 to 90 % of its time, so that the nodes of a cluster that were
// made together don't ask together.
func renewal(leaf *x509.Certificate) time.Time {
	whole := leaf.NotAfter.Sub(leaf.NotBefore)
	return leaf.NotBefore.Add(wait.Jitter(whole*7/10, 2.0/7))
}

// fits tells whether a certificate is what is asked for: a node may have other addresses than it had.
func (k *keeper) fits(leaf *x509.Certificate) bool {
	has := func(a net.IP) bool { return slices.ContainsFunc(leaf.IPAddresses, a.Equal) }
	return leaf.Subject.CommonName == k.template.Subject.CommonName &&
		contains(leaf.Subject.Organization, k.template.Subject.Organization) && contains(leaf.DNSNames, k.template.DNSNames) &&
		!slices.ContainsFunc(k.template.IPAddresses, func(a net.IP) bool { return !has(a) })
}

func contains(all, some []string) bool {
	return !slices.ContainsFunc(some, func(s string) bool { return !slices.Contains(all, s) })
}

func (k *keeper) run(ctx context.Context, due time.Time) {
	retry := firstRetry
	timer := time.NewTimer(time.Until(due))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		next, err := k.renew(ctx)
		if err != nil {
			if ctx.Err() == nil {
				k.log.Warn("certificate not given; it is asked for again", "signer", k.signer, "retry", retry, "err", err)
			}
			timer.Reset(wait.Jitter(retry, 0.1))
			retry = min(2*retry, lastRetry)
			continue
		}
		retry = firstRetry
		k.mu.Lock()
		k.now = next
		k.mu.Unlock()
		select {
		case k.renewed <- struct{}{}:
		default:
		}
		timer.Reset(time.Until(renewal(next.Leaf)))
	}
}

// renew asks for a certificate with a new key, and waits for it.
func (k *keeper) renew(ctx context.Context) (*tls.Certificate, error) {
	key, request, err := k.request()
	if err != nil {
		return nil, err
	}
	config, err := k.config(k.current())
	if err != nil {
		return nil, err
	}
	client, err := kube.New(config)
	if err != nil {
		return nil, err
	}
	requests, err := kube.NewResource(client, kube.TypeOf(certificates.SchemeGroupVersion, "certificatesigningrequests",
		&certificates.CertificateSigningRequest{}, &certificates.CertificateSigningRequestList{}))
	if err != nil {
		return nil, err
	}
	made, err := requests.All().Create(ctx, request, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("request for a certificate: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, approval)
	defer cancel()
	var given []byte
	source := requests.All().Source(kube.Named(made.Name))
	_, err = watchtools.UntilWithSync(ctx, source, made, nil, func(e watch.Event) (done bool, err error) {
		given, err = answer(made, e)
		return given != nil, err
	})
	if err != nil {
		return nil, fmt.Errorf("request %s for a certificate: %w", made.Name, err)
	}
	return k.files.save(given, key)
}

// request makes a key, as PEM, and asks for a certificate for it.
func (k *keeper) request() (key []byte, request *certificates.CertificateSigningRequest, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	text, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	signed, err := x509.CreateCertificateRequest(rand.Reader, &k.template, private)
	if err != nil {
		return nil, nil, err
	}
	request = &certificates.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "csr-"},
		Spec: certificates.CertificateSigningRequestSpec{
			Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: signed}),
			SignerName: k.signer, Usages: k.usages,
		},
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: text}), request, nil
}

// answer is the certificate, if there is one.
func answer(made *certificates.CertificateSigningRequest, e watch.Event) ([]byte, error) {
	if e.Type == watch.Deleted {
		return nil, errors.New("it was deleted")
	}
	now, ok := e.Object.(*certificates.CertificateSigningRequest)
	if !ok || now.UID != made.UID {
		return nil, errors.New("another one has its name")
	}
	approved := false
	for _, c := range now.Status.Conditions {
		switch {
		case c.Status == v1.ConditionFalse:
		case c.Type == certificates.CertificateDenied || c.Type == certificates.CertificateFailed:
			return nil, fmt.Errorf("%s: %s: %s", c.Type, c.Reason, c.Message)
		case c.Type == certificates.CertificateApproved:
			approved = true
		}
	}
	if !approved || len(now.Status.Certificate) == 0 {
		return nil, nil
	}
	return now.Status.Certificate, nil
}

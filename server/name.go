package server

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/server/store"
)

// newID returns 64 hexadecimal digits that no other pod or container has.
func newID() string {
	var b [32]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:])
}

// podName is what makes a pod the same pod in two requests.
func podName(m *cri.PodSandboxMetadata) string {
	return fmt.Sprintf("%s/%s/%s/%d", m.GetNamespace(), m.GetName(), m.GetUid(), m.GetAttempt())
}

// containerName is what makes a container the same in two requests.
func containerName(p *pod, rec *store.Container) string {
	m := rec.Config.GetMetadata()
	return fmt.Sprintf("%s/%s/%d", rec.Pod, m.GetName(), m.GetAttempt())
}

// maxName is the longest name that Kubernetes gives anything (a DNS subdomain).
const maxName = 253

// checkName refuses names that would garble a log line or a listing.
func checkName(field, value string) error {
	if value == "" {
		return invalid(field, value, "set it")
	}
	return checkText(field, value, maxName)
}

func checkText(field, value string, most int) error {
	if len(value) > most {
		return invalid(field, value[:most]+"…", fmt.Sprintf("use at most %d bytes", most))
	}
	if strings.ContainsFunc(value, unicode.IsControl) {
		return invalid(field, value, "leave out control characters")
	}
	return nil
}

// invalid is the error for a value that no repetition makes right.
func invalid(field, value, remedy string) error {
	return fmt.Errorf("%w: %s is %q; %s", store.ErrInvalid, field, value, remedy)
}

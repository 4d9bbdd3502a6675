// Package backoff spaces out what keeps failing: each failure doubles the wait before the next try, up to a limit. It is
// used instead of client-go's flowcontrol.Backoff because that one does not tell how much of a wait is left.
package backoff

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// Delays are the waits of many things, each of a pod.
type Delays struct {
	first, last time.Duration

	mu   sync.Mutex
	pods map[types.UID]map[string]entry
}

type entry struct {
	delay time.Duration
	at    time.Time // of the last try after a failure
}

// New makes delays that begin with first and double up to last. Kubelet's are 10 s and 5 min.
func New(first, last time.Duration) *Delays {
	return &Delays{first: first, last: last, pods: map[types.UID]map[string]entry{}}
}

// stable is for how long a thing must do well to begin anew, whatever the longest delay is; kubelet's is the same.
const stable = 10 * time.Minute

// Failed notes that a thing, which ended at one time, is tried again at another, and returns how long it must wait when it ends
// the next time.
func (d *Delays) Failed(uid types.UID, name string, ended, at time.Time) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pods[uid] == nil {
		d.pods[uid] = map[string]entry{}
	}
	delay := d.first
	if e, has := d.pods[uid][name]; has && ended.Sub(e.at) <= stable {
		delay = min(2*e.delay, d.last)
	}
	d.pods[uid][name] = entry{delay, at}
	return delay
}

// Left is how long a thing that ended at a time must wait yet; 0 if it need not.
func (d *Delays) Left(uid types.UID, name string, ended, now time.Time) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	e, has := d.pods[uid][name]
	if !has || ended.Sub(e.at) > stable {
		return 0
	}
	return max(e.delay-now.Sub(ended), 0)
}

// LastFailure is when a thing last failed; the zero time if it has not.
func (d *Delays) LastFailure(uid types.UID, name string) time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.pods[uid][name].at
}

// Delay is the wait that the last failure asked for; 0 without one.
func (d *Delays) Delay(uid types.UID, name string) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.pods[uid][name].delay
}

// Succeeded lets a thing begin anew.
func (d *Delays) Succeeded(uid types.UID, name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.pods[uid], name)
}

// Forget drops all of a pod.
func (d *Delays) Forget(uid types.UID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.pods, uid)
}

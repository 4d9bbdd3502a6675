// Package proxy makes a node treat packets to Services as the Service API says. It takes objects from a source, lets
// package model say what follows from them, and has a backend make the kernel do it.
package proxy

import (
	"context"

	"github.com/orlop/orlop/proxy/model"
)

// Backend makes the kernel do what the model says, in every family of the network. It keeps in memory what it has made
// the kernel hold, so that a change costs what the change is. Its methods are called by one goroutine.
type Backend interface {
	// Replace makes the kernel hold rules and nothing else that a backend of this kind ever made, also in an earlier
	// process or by a kube-proxy in the same mode. It is called at the start, when the network is another, and after
	// Tampered. Established connections go on, affinities are kept, and no packet meets half of the rules.
	Replace(ctx context.Context, rules model.Rules) error
	// Apply makes it hold changes to what Replace and Apply said before. After an error the caller calls Replace.
	Apply(ctx context.Context, changes []model.Change) error
	// Tampered receives when somebody else changed what this backend made the kernel hold.
	Tampered() <-chan struct{}
	// Close ends what watches, and leaves the rules in the kernel.
	Close() error
}

package store

import (
	"errors"
	"fmt"
	"slices"
)

// What callers branch on.
var (
	ErrNotFound = errors.New("not found")
	// ErrExists means that the name is taken by something else than what was asked for.
	ErrExists = errors.New("exists already")
	// ErrState is a transition that the tables below do not have, or a request that its subject's state forbids.
	ErrState = errors.New("not allowed in this state")
	// ErrInvalid is a request that can never succeed; the text names field, value and remedy.
	ErrInvalid = errors.New("invalid request")
)

// PodState is where a pod is in its life:
//
//	creating ─▶ ready ─▶ stopping ─▶ notready ─▶ removing ─▶ (no record)
//	   └──────────────────────────────────────────▲ a create that fails is removed
//
// Stopping and removing are left only when all has been undone, so a record in one of them is work to be gone on with.
type PodState string

// See PodState.
const (
	PodCreating PodState = "creating"
	PodReady    PodState = "ready"
	PodStopping PodState = "stopping"
	PodNotReady PodState = "notready"
	PodRemoving PodState = "removing"
)

var podMoves = map[PodState][]PodState{
	PodCreating: {PodReady, PodRemoving},
	PodReady:    {PodStopping},
	PodStopping: {PodNotReady, PodRemoving}, // removing goes on with what stopping could not undo yet
	PodNotReady: {PodRemoving},
}

// ContainerState is where a container is in its life:
//
//	creating ─▶ created ─start─▶ running ─exit─▶ exited ─▶ removing ─▶ (no record)
//	   │           └─ killed, or its start failed ──▲          ▲
//	   └───────────────── a create that fails is removed ──────┘
type ContainerState string

// See ContainerState.
const (
	ContainerCreating ContainerState = "creating"
	ContainerCreated  ContainerState = "created"
	ContainerRunning  ContainerState = "running"
	ContainerExited   ContainerState = "exited"
	ContainerRemoving ContainerState = "removing"
)

var containerMoves = map[ContainerState][]ContainerState{
	ContainerCreating: {ContainerCreated, ContainerRemoving},
	ContainerCreated:  {ContainerRunning, ContainerExited},
	ContainerRunning:  {ContainerExited},
	ContainerExited:   {ContainerRemoving},
}

// Move returns a copy of the record in state to, or ErrState. The copy counts once it has been put in the store.
func (p *Pod) Move(to PodState) (*Pod, error) {
	if !slices.Contains(podMoves[p.State], to) {
		return nil, fmt.Errorf("pod %s: %s to %s: %w", p.ID, p.State, to, ErrState)
	}
	next := *p
	next.State = to
	return &next, nil
}

// Move returns a copy of the record in state to, or ErrState. The copy counts once it has been put in the store.
func (c *Container) Move(to ContainerState) (*Container, error) {
	if !slices.Contains(containerMoves[c.State], to) {
		return nil, fmt.Errorf("container %s: %s to %s: %w", c.ID, c.State, to, ErrState)
	}
	next := *c
	next.State = to
	return &next, nil
}

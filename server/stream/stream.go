// Package stream serves Exec, Attach and PortForward over WebSocket and SPDY, by k8s.io/cri-streaming, on loopback
// with one-time tokens.
package stream

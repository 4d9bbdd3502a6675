package kube

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// NodeName is the node's: the configured one, or else the machine's, in small letters as the API wants it.
func NodeName(configured string) (string, error) {
	name := configured
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return "", fmt.Errorf("node name: %w", err)
		}
	}
	if name = strings.ToLower(strings.TrimSpace(name)); name == "" {
		return "", errors.New("node name: empty; set the machine's host name, or --hostname-override")
	}
	return name, nil
}

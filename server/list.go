package server

import (
	"strings"
)

// matches tells whether labels have all that a selector asks for.
func matches(labels, selector map[string]string) bool {
	for k, want := range selector {
		if have, ok := labels[k]; !ok || have != want {
			return false
		}
	}
	return true
}

// hasPrefix is the ID part of a filter: clients may give the beginning of an ID.
func hasPrefix(id, filter string) bool { return filter == "" || strings.HasPrefix(id, filter) }

package node

import (
	"encoding/json"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// statusPatch is a patch that makes the status of found that of want. Addresses are replaced as a whole: the API merges them
// by their type, though a node may have several of one type.
func statusPatch(found, want *v1.Node) ([]byte, error) {
	before, after := v1.Node{Status: found.Status}, v1.Node{Status: want.Status}
	replace := len(found.Status.Addresses) > 0 && !slices.Equal(found.Status.Addresses, want.Status.Addresses)
	if replace {
		after.Status.Addresses = found.Status.Addresses
	}
	old, err := json.Marshal(before)
	if err != nil {
		return nil, err
	}
	now, err := json.Marshal(after)
	if err != nil {
		return nil, err
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(old, now, v1.Node{})
	if err != nil || !replace {
		return patch, err
	}
	return replaceAddresses(patch, want.Status.Addresses)
}

func replaceAddresses(patch []byte, addresses []v1.NodeAddress) ([]byte, error) {
	var fields map[string]map[string]any
	if err := json.Unmarshal(patch, &fields); err != nil {
		return nil, err
	}
	all := []any{}
	for _, a := range addresses {
		all = append(all, a)
	}
	if fields["status"] == nil {
		fields["status"] = map[string]any{}
	}
	fields["status"]["addresses"] = append(all, map[string]string{"$patch": "replace"})
	return json.Marshal(fields)
}

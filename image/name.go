package image

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/distribution/reference"
)

// parseName reads a name as Kubernetes does: without a registry it is Docker's (docker.io/library for one word),
// without tag and digest it means the tag latest, and if there is a digest the tag does not matter.
func parseName(name string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %w", ErrInvalidName, clip(name), err)
	}
	digested, ok := named.(reference.Digested)
	if !ok {
		return reference.TagNameOnly(named), nil
	}
	canonical, err := reference.WithDigest(reference.TrimNamed(named), digested.Digest())
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %w", ErrInvalidName, clip(name), err)
	}
	return canonical, nil
}

// clip keeps a name of a hostile length out of logs.
func clip(name string) string {
	const most = 300
	if len(name) <= most {
		return name
	}
	return name[:most] + "…"
}

// splitNames sorts names into such with tags and such with digests.
func splitNames(names []string) (tags, digests []string) {
	for _, n := range names {
		if strings.Contains(n, "@") {
			digests = append(digests, n)
		} else {
			tags = append(tags, n)
		}
	}
	return tags, digests
}

// pin is a pattern of names that must stay.
type pin struct{ pattern *regexp.Regexp }

func parsePins(patterns []string) ([]pin, error) {
	var pins []pin
	for _, p := range patterns {
		if p == "" {
			return nil, fmt.Errorf("pinned images: %w: an entry is empty: remove it", ErrInvalidName)
		}
		if !strings.Contains(p, "*") {
			named, err := parseName(p)
			if err != nil {
				return nil, fmt.Errorf("pinned images: %w", err)
			}
			p = named.String()
		}
		expr := strings.ReplaceAll(regexp.QuoteMeta(p), `\*`, ".*")
		compiled, err := regexp.Compile("^" + expr + "$")
		if err != nil {
			return nil, fmt.Errorf("pinned images: %q: %w", p, err)
		}
		pins = append(pins, pin{compiled})
	}
	return pins, nil
}

func pinned(pins []pin, names []string) bool {
	for _, p := range pins {
		for _, n := range names {
			if p.pattern.MatchString(n) {
				return true
			}
		}
	}
	return false
}

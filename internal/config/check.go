package config

import (
	"fmt"
	"net"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/sys/capability"
)

// check looks at a key's value (a string, int64, []string or time.Duration). A value that will not do gives what is
// wrong with it and what to write instead.
type check func(v any) (problem, remedy string)

func (k Key) mistake(c *Config) *Mistake {
	if k.check == nil {
		return nil
	}
	v := k.value(c)
	problem, remedy := k.check(v)
	if problem == "" {
		return nil
	}
	return &Mistake{Key: k.Name, Value: format(v), Problem: problem, Remedy: remedy}
}

func absolutePath(v any) (string, string) {
	switch s := v.(string); {
	case !filepath.IsAbs(s):
		return "is not an absolute path", `write it from "/" on`
	case strings.ContainsRune(s, 0):
		return "holds a zero byte", "remove it"
	}
	return "", ""
}

// maxSocketPath is the size of sun_path in unix(7) less the zero byte at its end.
const maxSocketPath = 107

func socketPath(v any) (string, string) {
	if len(v.(string)) > maxSocketPath {
		return "is too long for a socket", fmt.Sprintf("use a path of at most %d bytes", maxSocketPath)
	}
	return absolutePath(v)
}

func oneOf(allowed ...string) check {
	return func(v any) (string, string) {
		if slices.Contains(allowed, v.(string)) {
			return "", ""
		}
		return "is not a value it can have", "use one of \"" + strings.Join(allowed, `", "`) + `"`
	}
}

func between(low, high int64) check {
	return func(v any) (string, string) {
		if n := v.(int64); n < low || n > high {
			return "is out of range", fmt.Sprintf("use a whole number from %d to %d", low, high)
		}
		return "", ""
	}
}

func emptyOr(c check) check {
	return func(v any) (string, string) {
		if v == "" {
			return "", ""
		}
		return c(v)
	}
}

// listOf checks each element; the problem names the first bad one.
func listOf(c check) check {
	return func(v any) (string, string) {
		for _, s := range v.([]string) {
			if problem, remedy := c(s); problem != "" {
				return fmt.Sprintf("%q %s", s, problem), remedy
			}
		}
		return "", ""
	}
}

func nonEmptyListOf(c check) check {
	return func(v any) (string, string) {
		if len(v.([]string)) == 0 {
			return "is empty", "name at least one"
		}
		return listOf(c)(v)
	}
}

func cgroupParent(v any) (string, string) {
	s := v.(string)
	slice := strings.HasSuffix(s, ".slice") && !strings.Contains(s, "/")
	if s != "" && !slice && (!path.IsAbs(s) || path.Clean(s) != s || s == "/") {
		return "is no cgroup", `write a slice ("orlop.slice") or a clean path below the root ("/orlop")`
	}
	return "", ""
}

// imagePatternRE has what names with tags and digests are made of, IPv6 addresses of registries, and the star.
var imagePatternRE = regexp.MustCompile(`^(\[[0-9A-Fa-f:]+\])?[A-Za-z0-9._:/@*-]+$`)

// imageNames takes what package image takes: a name, or a pattern of names whose only wildcard is the star.
func imageNames(v any) (string, string) {
	s := v.(string)
	_, err := reference.ParseNormalizedNamed(s)
	if err != nil && (!strings.Contains(s, "*") || !imagePatternRE.MatchString(s)) {
		return "is no image name", `write one such as "registry.example/base:1"; of wildcards there is "*" alone`
	}
	return "", ""
}

var assignmentRE = regexp.MustCompile(`^[^=\s\x00]+=[^\x00]*$`)

func assignment(v any) (string, string) {
	if !assignmentRE.MatchString(v.(string)) {
		return "is no assignment", `write it as "name=value"`
	}
	return "", ""
}

func capabilityName(v any) (string, string) {
	name := v.(string)
	for _, c := range capability.ListKnown() {
		if name == "CAP_"+strings.ToUpper(c.String()) {
			return "", ""
		}
	}
	return "is no capability", `use a name of capabilities(7) in full, such as "CAP_CHOWN"`
}

// ulimitNames are those of setrlimit(2) that Linux has, in lower case without RLIMIT_.
var ulimitNames = []string{
	"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
	"rttime", "sigpending", "stack",
}

// Ulimit is one element of container.ulimits.
type Ulimit struct {
	Name       string // "nofile"
	Soft, Hard uint64 // ^0 is unlimited
}

// ParseUlimit parses "name=soft:hard" or "name=both"; -1 is unlimited.
func ParseUlimit(s string) (Ulimit, error) {
	name, limits, ok := strings.Cut(s, "=")
	if !ok || !slices.Contains(ulimitNames, name) {
		return Ulimit{}, fmt.Errorf("ulimit %q: unknown name", s)
	}
	softText, hardText, two := strings.Cut(limits, ":")
	if !two {
		hardText = softText
	}
	soft, err := parseLimit(softText)
	if err != nil {
		return Ulimit{}, fmt.Errorf("ulimit %q: %w", s, err)
	}
	hard, err := parseLimit(hardText)
	if err != nil {
		return Ulimit{}, fmt.Errorf("ulimit %q: %w", s, err)
	}
	if soft > hard {
		return Ulimit{}, fmt.Errorf("ulimit %q: soft limit above hard limit", s)
	}
	return Ulimit{Name: name, Soft: soft, Hard: hard}, nil
}

func parseLimit(s string) (uint64, error) {
	if s == "-1" {
		return ^uint64(0), nil
	}
	return strconv.ParseUint(s, 10, 64)
}

func ulimit(v any) (string, string) {
	if _, err := ParseUlimit(v.(string)); err != nil {
		return "is no limit", `write "name=soft:hard" with soft not above hard and a name of ` + strings.Join(ulimitNames, ", ")
	}
	return "", ""
}

func listenAddress(v any) (string, string) {
	host, port, err := net.SplitHostPort(v.(string))
	if err != nil || net.ParseIP(host) == nil {
		return "is no address to listen on", `write "IP:PORT", such as "127.0.0.1:0" or "[::1]:0"`
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "has no valid port", "use a port from 0 to 65535; 0 takes a free one"
	}
	return "", ""
}

func positiveDuration(v any) (string, string) {
	if v.(time.Duration) <= 0 {
		return "is not positive", `write a duration such as "30m" or "4h"`
	}
	return "", ""
}

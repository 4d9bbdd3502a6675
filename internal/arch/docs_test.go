package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// named are the paths in `quotes` of Markdown that claim to be in this repository: those that begin with a directory
// of it.
var named = regexp.MustCompile("`([a-z][A-Za-z0-9_.-]*/[A-Za-z0-9_./-]*)`")

// linked are the targets of relative links.
var linked = regexp.MustCompile(`\]\(([^):#]+)\)`)

// TestDocsNameWhatExists keeps documents from naming files that were moved or removed.
func TestDocsNameWhatExists(t *testing.T) {
	var files []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/adr/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	checked := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range named.FindAllStringSubmatch(string(text), -1) {
			top, _, _ := strings.Cut(m[1], "/")
			if _, err := os.Stat(filepath.Join(root, top)); err != nil {
				continue // a path of another kind
			}
			checked++
			if _, err := os.Stat(filepath.Join(root, m[1])); err != nil && !exempt(m[1]) {
				t.Errorf("%s names %s: %v", file, m[1], err)
			}
		}
		for _, m := range linked.FindAllStringSubmatch(string(text), -1) {
			checked++
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", file, m[1], err)
			}
		}
	}
	if checked < 20 {
		t.Errorf("only %d paths were found in %q: this test looks for the wrong thing", checked, files)
	}
}

// exempt are paths of a running node whose first name is that of a directory here, and what a build makes.
func exempt(path string) bool {
	return strings.HasPrefix(path, "server/pods/") || strings.HasPrefix(path, "storage/overlay") || strings.HasPrefix(path, "build/")
}

// TestDependenciesAreExplained wants the reason for each direct requirement of go.mod.
func TestDependenciesAreExplained(t *testing.T) {
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "docs/dependencies.md"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mod)) {
		fields := strings.Fields(line)
		if len(fields) != 2 || !strings.HasPrefix(line, "\t") {
			continue // not a requirement, or an indirect one
		}
		if !strings.Contains(string(text), fields[0]) {
			t.Errorf("docs/dependencies.md says nothing of %s", fields[0])
		}
	}
}

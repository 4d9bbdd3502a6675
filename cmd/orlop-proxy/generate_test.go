package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

var update = flag.Bool("update", false, "write the generated files")

// pagesDate is on the manual page. It is no clock's, else the page would differ with every build.
var pagesDate = time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC)

// TestGeneratedFiles keeps the manual page and the completions as the flags are: `make docs completions`.
func TestGeneratedFiles(t *testing.T) {
	cmd := newCommand()
	cmd.Version = "" // or each commit would change the page
	cmd.DisableAutoGenTag = true
	explain, _, err := cmd.Find([]string{"explain"})
	if err != nil {
		t.Fatal(err)
	}
	page := func(of *cobra.Command) func(b *bytes.Buffer) error {
		return func(b *bytes.Buffer) error {
			return doc.GenMan(of, &doc.GenManHeader{Section: "8", Source: "Orlop", Manual: "Orlop", Date: &pagesDate}, b)
		}
	}
	for path, make := range map[string]func(b *bytes.Buffer) error{
		"docs/man/orlop-proxy.8":         page(cmd),
		"docs/man/orlop-proxy-explain.8": page(explain),
		"completions/orlop-proxy.bash":   func(b *bytes.Buffer) error { return cmd.GenBashCompletionV2(b, true) },
		"completions/_orlop-proxy":       func(b *bytes.Buffer) error { return cmd.GenZshCompletion(b) },
		"completions/orlop-proxy.fish":   func(b *bytes.Buffer) error { return cmd.GenFishCompletion(b, true) },
	} {
		var made bytes.Buffer
		if err := make(&made); err != nil {
			t.Fatal(err)
		}
		kept := filepath.Join("../..", path)
		if *update {
			if err := os.WriteFile(kept, made.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if data, err := os.ReadFile(kept); err != nil || !bytes.Equal(data, made.Bytes()) {
			t.Errorf("%s is not as the program has it; run `make docs completions` (%v)", path, err)
		}
	}
}

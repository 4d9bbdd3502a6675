package main

import (
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/orlop/orlop/internal/config"
)

// Manual pages, shell completions and the sample configuration are made from the commands and the keys themselves, by
// this test: `make docs completions`. It is a test so that the generators are not linked into the daemon, and so that
// `make check` finds what was not generated anew.

var update = flag.Bool("update", false, "write the generated files")

// pagesDate is on all manual pages. It is no clock's, else the pages would differ with every build.
var pagesDate = time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC)

const repository = "../.."

func TestGeneratedFiles(t *testing.T) {
	made := t.TempDir()
	generate(t, made)
	for _, dir := range []string{"docs/man", "completions", "contrib/config"} {
		kept := filepath.Join(repository, dir)
		if *update {
			for path := range readTree(t, kept) {
				if err := os.Remove(filepath.Join(kept, path)); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.CopyFS(kept, os.DirFS(filepath.Join(made, dir))); err != nil {
				t.Fatal(err)
			}
		}
		want, got := readTree(t, filepath.Join(made, dir)), readTree(t, kept)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s is not as the program has it; run `make docs completions` (-program +file):\n%s", dir, diff)
		}
	}
}

// written are files that a person wrote.
var written = []string{"kubelet.yaml", "proxy.yaml"}

// ofOthers are files that other commands make in the same way, or that nobody makes.
func ofOthers(path string) bool {
	return slices.Contains(written, path) || slices.ContainsFunc(programs, func(p program) bool { return strings.Contains(path, p.name) })
}

func readTree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || ofOthers(path) {
			return err
		}
		text, err := os.ReadFile(filepath.Join(dir, path))
		files[path] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func generate(t *testing.T, to string) {
	t.Helper()
	file := func(name string) *os.File {
		path := filepath.Join(to, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	root := newRootCommand()
	root.Version = "" // or each commit would change the page
	root.DisableAutoGenTag = true
	for _, err := range []error{
		os.MkdirAll(filepath.Join(to, "docs/man"), 0o755),
		doc.GenManTree(root, &doc.GenManHeader{Section: "8", Source: "Orlop", Manual: "Orlop", Date: &pagesDate}, filepath.Join(to, "docs/man")),
		writeConfigPage(file("docs/man/orlop.toml.5")),
		config.WriteDefault(file("contrib/config/orlop.toml")),
		root.GenBashCompletionV2(file("completions/orlop.bash"), true),
		root.GenZshCompletion(file("completions/_orlop")),
		root.GenFishCompletion(file("completions/orlop.fish"), true),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range programs { // they have better ones
		if err := os.Remove(filepath.Join(to, "docs/man", p.name+".8")); err != nil {
			t.Fatal(err)
		}
	}
}

// writeConfigPage writes orlop.toml(5) in the macros of man(7).
func writeConfigPage(f *os.File) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, ".TH ORLOP.TOML 5 %q Orlop Orlop\n", pagesDate.Format("Jan 2006"))
	b.WriteString(".SH NAME\norlop.toml \\- configuration of Orlop\n.SH DESCRIPTION\n")
	fmt.Fprintf(&b, "Orlop reads %s and then each *.toml in %s.d by name, a later file winning key by key. "+
		"A list is replaced as a whole. A key that is not known or has a bad value is refused with its file and line: see\n"+
		".BR \"orlop config check\" .\nAll keys and their defaults:\n", config.DefaultPath, config.DefaultPath)
	defaults := config.Defaults()
	for _, table := range config.Tables() {
		if table.Name != "" {
			fmt.Fprintf(&b, ".SS [%s]\n", table.Name)
		}
		b.WriteString(roff(table.Doc) + "\n")
		for _, k := range config.Keys() {
			if in, name := k.Table(); in == table.Name {
				fmt.Fprintf(&b, ".TP\n\\fB%s\\fP = %s\n%s\n", name, roff(k.Format(&defaults)), roff(k.Doc))
			}
		}
	}
	b.WriteString(".SH SEE ALSO\n.BR orlop-serve (8),\n.BR orlop-config (8)\n")
	_, err := f.Write(b.Bytes())
	return err
}

// roff keeps text from being taken for macros and its dashes from being typeset.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text)
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		text = `\&` + text
	}
	return text
}

// TestCommandsAreDocumented keeps the manual pages useful: they say no more than the commands do.
func TestCommandsAreDocumented(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: its short text %q is no title", c.CommandPath(), c.Short)
		}
		if c.Runnable() && c.Name() != "version" && c.Long == "" {
			t.Errorf("%s has no long text", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	root := newRootCommand()
	walk(root)
	names := []string{}
	for _, c := range root.Commands() {
		names = append(names, c.Name())
	}
	if !slices.Contains(names, "serve") || !slices.Contains(names, "status") {
		t.Errorf("the commands are %q", names)
	}
}

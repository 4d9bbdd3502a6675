package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// root is the module's root as seen from this package's directory, where tests run.
const root = "../.."

// goFile is what the tests need to know of one file.
type goFile struct {
	path, dir string // relative to root
	isTest    bool
	imports   []string
	doc       bool // has a package comment
}

func readTree(t *testing.T) []goFile {
	t.Helper()
	var files []goFile
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir() && (rel == "build" || rel == ".git" || d.Name() == "testdata" || otherModule(path)):
			return fs.SkipDir
		case d.IsDir() || filepath.Ext(path) != ".go":
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		files = append(files, describe(filepath.ToSlash(rel), f))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("found %d Go files below %s: this test looks in the wrong place", len(files), root)
	}
	return files
}

// otherModule is true for a directory of tests that is a module of its own, so that what it needs is not among ours.
func otherModule(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil && filepath.Clean(dir) != filepath.Clean(root)
}

func describe(path string, f *ast.File) goFile {
	g := goFile{path: path, dir: filepath.ToSlash(filepath.Dir(path)), isTest: strings.HasSuffix(path, "_test.go"), doc: f.Doc != nil}
	for _, i := range f.Imports {
		name, err := strconv.Unquote(i.Path.Value)
		if err == nil {
			g.imports = append(g.imports, name)
		}
	}
	return g
}

func TestArrows(t *testing.T) {
	for _, f := range readTree(t) {
		if _, known := ruleOf(f.dir); !known {
			t.Errorf("%s: no rule for directory %s; add it to Rules", f.path, f.dir)
			continue
		}
		for _, imp := range f.imports {
			to, own := strings.CutPrefix(imp, Module+"/")
			if own && !Allowed(f.dir, to, f.isTest) {
				t.Errorf("%s: %s must not import %s", f.path, f.dir, to)
			}
		}
	}
}

func TestHomes(t *testing.T) {
	for _, f := range readTree(t) {
		for _, imp := range f.imports {
			for _, h := range Homes {
				allowed := inAny(f.dir, h.Trees) || f.isTest && inAny(f.dir, h.Tests)
				if strings.HasPrefix(imp, h.Import) && !allowed {
					t.Errorf("%s: imports %s, which is kept to %s: %s", f.path, imp, strings.Join(h.Trees, ", "), h.Why)
				}
			}
		}
	}
}

func TestPurePackages(t *testing.T) {
	for _, f := range readTree(t) {
		if f.isTest {
			continue
		}
		for _, banned := range Pure[f.dir] {
			for _, imp := range f.imports {
				if imp == banned {
					t.Errorf("%s: %s is pure and must not import %s", f.path, f.dir, imp)
				}
			}
		}
	}
}

func TestPackageComments(t *testing.T) {
	documented := map[string]bool{}
	for _, f := range readTree(t) {
		if !f.isTest {
			documented[f.dir] = documented[f.dir] || f.doc
		}
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s: no file has a package comment", dir)
		}
	}
}

func TestNoGoDirectories(t *testing.T) {
	for _, f := range readTree(t) {
		if inAny(f.dir, NoGo) {
			t.Errorf("%s: %s holds no Go", f.path, f.dir)
		}
	}
}

// TestUnlinked asks the go command for all dependencies: what is imported by what we import is linked as well.
func TestUnlinked(t *testing.T) {
	for pkgs, banned := range Unlinked {
		if _, err := os.Stat(filepath.Join(root, strings.TrimSuffix(pkgs, "/..."))); err != nil {
			t.Errorf("Unlinked names %s: %v", pkgs, err)
			continue
		}
		cmd := exec.Command("go", "list", "-deps", "-f", "{{.ImportPath}}", "./"+pkgs)
		cmd.Dir = root
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("go list -deps ./%s: %v", pkgs, err)
			continue
		}
		for dep := range strings.Lines(string(out)) {
			for _, b := range banned {
				if strings.HasPrefix(dep, b) {
					t.Errorf("%s links %s", pkgs, strings.TrimSpace(dep))
				}
			}
		}
	}
}

func TestAllowed(t *testing.T) {
	for _, tt := range []struct {
		from, to string
		testFile bool
		want     bool
	}{
		{"server", "oci/spec", false, true},
		{"server/cni", "server/store", false, true}, // one tree
		{"server", "oci/runtime", false, false},     // libcontainer types stop there
		{"server", "test/kernel", false, false},
		{"server", "test/kernel", true, true},
		{"storage/storagetest", "test/kernel", false, true}, // a kit
		{"storage", "storage/storagetest", false, false},
		{"storage/untar", "storage/storagetest", true, true},
		{"oci/runtime", "storage", false, false},
		{"conmon/worker", "oci/runtime", false, true},
		{"conmon", "server", false, false},
		{"image", "storage", false, true},
		{"storage", "image", false, false},
		{"internal/config", "oci/ns", false, false},
		{"cmd/orlop", "server", false, true},
		{"cmd/orlop", "test/e2e", false, false},
		{"cmd/orlop-conmon", "server", false, false},
		{"cmd/orlop-conmon", "conmon/keeper", false, true},
		{"test/e2e", "server", false, true},
		{"test/e2e", "test/kernel", false, true},
		{"serverless", "oci/spec", false, false}, // no such tree
	} {
		if got := Allowed(tt.from, tt.to, tt.testFile); got != tt.want {
			t.Errorf("Allowed(%q, %q, test file %v) = %v", tt.from, tt.to, tt.testFile, got)
		}
	}
}

func inAny(dir string, trees []string) bool {
	for _, tree := range trees {
		if inTree(dir, tree) {
			return true
		}
	}
	return false
}
